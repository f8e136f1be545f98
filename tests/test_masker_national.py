"""National identification numbers: each with the published check of its country, and its neighbours left alone."""

from __future__ import annotations

import pytest

from reliakit.logs import Masker

masker = Masker()
# Published examples and test numbers, none of which belongs to anybody.
NUMBERS = {
    "United States": "123-45-6789",
    "Canada": "046-454-286",
    "Sweden": "811228-9874",
    "Sweden, long": "19811228-9874",
    "Finland": "131052-308T",
    "Czechia": "710319/2745",
    "Switzerland": "756.9217.0769.85",
    "Belgium": "93.05.18-223.61",
    "Brazil": "529.982.247-25",
    "Brazil, company": "11.222.333/0001-81",
    "Argentina": "20-12345678-6",
    "Chile": "12.345.678-5",
    "Korea": "900101-1234567",
    "India": "2341 2341 2346",
    "Thailand": "1-2345-67890-12-1",
    "United Kingdom": "AB123456C",
    "United Kingdom, spaced": "AB 12 34 56 C",
    "Spain": "12345678Z",
    "Spain, foreigner": "X1234567L",
    "Italy": "RSSMRA85T10A562S",
    "Singapore": "S1234567D",
    "Ireland": "1234567T",
    "Mexico": "GODE561231HDFRRN09",
    "China": "11010519491231002X",
    "Hong Kong": "A123456(3)",
    "Hong Kong, two letters": "AB987654(3)",
    "Russia": "112-233-445 95",
    "France": "255081416802538",
    "France, spaced": "2 55 08 14 168 025 38",
}


@pytest.mark.parametrize("number", NUMBERS.values(), ids=NUMBERS)
def test_a_number_that_fits_is_hidden_in_text_and_alone(number):
    assert masker.mask_text(f"citizen {number}, ok") == "citizen ***, ok"
    assert masker.mask_text(number) == "***"
    assert masker.mask({"note": f'x="{number}"'}) == {"note": 'x="***"'}


@pytest.mark.parametrize(
    "number",
    [
        *("046-454-287", "811228-9875", "131052-308U", "710319/2746", "756.9217.0769.86", "93.05.18-223.62"),
        *("529.982.247-26", "20-12345678-7", "12.345.678-6", "2341 2341 2347", "12345678A", "X1234567A"),
        *("A123456(4)", "112-233-445 96"),
        *("RSSMRA85T10A562T", "S1234567E", "1234567A", "110105194912310021", "255081416802539"),
    ],
)
def test_a_number_whose_check_does_not_fit_is_left_alone(number):
    assert masker.mask_text(f"part {number}, ok") == f"part {number}, ok"


@pytest.mark.parametrize(
    "text",
    [
        "at 2024-10-12 12:10:31 and 2024-10-12T12:10:31Z",
        "order 123-1234567-1234567 and 2024-001234",
        "version 1.234.567 of build 20241012-1234",
        "ISBN 978-3-16-148410-0 and part 4711-0815",
        "HTTP/1.1 200 OK, GET /A/B/C-1234567",
        "x-123-45-6789-y 123-45-67890",
        "E20024 failed, ORA-00942, SQLSTATE 23505",
        "10.12.2024 12.10.31-123.46",
        "passport valid2024x, id card X1000, pan to A1, a sin of 30 degrees, ein 12 Fehler, my number is 42",
        "batch (2020) 1000-2000, J. Phys. (123) 456-789 and (12) 34-56",
        "NL00ABNA3337453370",
    ],
)
def test_numbers_of_other_kinds_are_left_alone(text):
    assert masker.mask_text(text) == text


@pytest.mark.parametrize(
    "name",
    ["pesel", "bsn", "nationalId", "aadhaar_number", "cpf", "dni", "nhs_number", "codiceFiscale", "tax_file_number"],
)
def test_numbers_that_are_mere_digits_are_told_by_their_fields(name):
    assert masker.mask({name: "44051401359"}) == {name: "***"}


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("Passport No. {} expired", "AB1234567"),
        ("passport {}", "C01X00T47"),
        ("driver's license {}, ok", "D1234567"),
        ("PAN {} linked", "ABCPE1234F"),
        ("EIN {}", "12-3456789"),
        ("SIN: {} x", "046 454 286"),
        ("TFN {}", "123 456 782"),
        ("IMEI {} seen", "490154203237518"),
        ("My Number {}", "123456789018"),
        ("call {}, please", "(11) 91234-5678"),
        ("8 {} ok", "(495) 123-45-67"),
    ],
)
def test_a_number_told_by_its_name_or_its_brackets_is_hidden(text, number):
    assert masker.mask_text(text.format(number)) == text.format("***")


@pytest.mark.parametrize("name", ["dateOfBirth", "birth_date", "dob", "geburtsdatum"])
def test_the_date_of_a_birth_is_hidden_and_whether_it_is_known_is_not(name):
    assert masker.mask({name: "1990-01-31", f"{name}_required": True, f"has_{name}": 1}) == {
        name: "***",
        f"{name}_required": True,
        f"has_{name}": 1,
    }
