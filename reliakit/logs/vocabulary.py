"""The words by which field names show that their values are secret or personal, and the words that revoke it.

Everything is in lower case and without accents, as `spelling` makes it.
"""

from __future__ import annotations

from reliakit.logs.spelling import plain, word_set

__all__ = [
    "AFTER",
    "BEFORE",
    "BEFORE_TOKENS",
    "COMPOUNDS",
    "DRAWN_TAILS",
    "FIRST_WORDS",
    "FOLDER_TAILS",
    "KEY_MEMBERS",
    "LAST_WORDS",
    "LONGEST_COMPOUND",
    "PARTS",
    "PLURALS",
    "SECRETS",
    "WEAK_PAIRS",
    "WEAK_TAILS",
]

SECRETS = word_set(
    """
    password passwords passwd passwds passphrase passphrases passcode passkey passkeys pw psw pswd psk pwhash
    secret secrets token tokens jwt jwts jws jwe bearer apikey apikeys apitoken apisecret appkey appsecret
    secretkey accesskey privatekey signingkey encryptionkey masterkey authkey sshkey sessionkey accountkey
    credential credentials creds authorization authorisation cookie cookies keypass storepass requirepass masterauth
    sessionid sessid phpsessid jsessionid aspsessionid csrf xsrf csrfmiddlewaretoken
    otp totp hotp cvv cvv2 cvc cvc2 csc ssn pin pincode mfacode otpcode
    cardnumber cardno creditcard debitcard ccnumber ccnum ccn
    mysqlpwd pgpassword pgpass htpasswd userpwd dbpwd sshpass
    passwort passworter kennwort kennworter geheimnis zugangscode zugangsdaten losungswort kartennummer kreditkarte
    contrasena contrasenas contrasenya contrasinal pasahitza secreto
    motdepasse mdp motsdepasse jeton
    senha senhas palavrapasse segredo segreto
    wachtwoord wachtwoorden wagwoord kaartnummer
    haslo heslo jelszo salasana losenord passord adgangskode kodeord parool slaptazodis parole lozinka zaporka geslo
    parola sifre katasandi sandi matkhau tunnussana lykilord pasfhocal cyfrinair nenosiri fjalekalimi
    пароль пароли секрет токен паролата парола лозинка құпиясөз
    κωδικος συνθηματικο პაროლი գաղտնաբառ
    パスワード 暗証番号 秘密鍵 合言葉
    密码 密碼 口令 密钥 密鑰 令牌 身份证号 身份證號
    비밀번호 암호 패스워드 주민등록번호
    كلمةالمرور كلمةالسر سيسמה סיסמה סיסמא
    पासवर्ड পাসওয়ার্ড கடவுச்சொல் รหัสผ่าน گذرواژه پاسورد پاسورڈ
    pesel nino bsn cpf cnpj aadhaar aadhar curp cuit cuil tckn nric hkid dni nif personnummer fodselsnummer
    henkilotunnus hetu burgerservicenummer rijksregisternummer steueridentifikationsnummer steuerid
    sozialversicherungsnummer ausweisnummer passnummer
    """
)

COMPOUNDS = frozenset(
    tuple(plain(line).split())
    for line in """
    api key
    api keys
    access key
    access keys
    secret key
    private key
    private keys
    signing key
    encryption key
    decryption key
    master key
    account key
    shared key
    session key
    session id
    session ids
    sess id
    session cookie
    service key
    deploy key
    license key
    recovery key
    ssh key
    ssl key
    tls key
    pgp key
    gpg key
    hmac key
    aes key
    rsa key
    auth key
    app key
    storage key
    subscription key
    function key
    webhook key
    stripe key
    openai key
    anthropic key
    maps key
    server key
    wep key
    fernet key
    pem key
    rapidapi key
    preshared key
    signature key
    conn str
    two factor code
    birth date
    date of birth
    fecha de nacimiento
    date de naissance
    data de nascimento
    data di nascita
    wpa key
    sas key
    shared access signature
    auth code
    authorization code
    code verifier
    verification code
    confirmation code
    activation code
    security code
    security answer
    security answers
    recovery code
    recovery codes
    backup code
    backup codes
    one time code
    your code
    maiden name
    mfa code
    fa code
    sms code
    login code
    access code
    connection string
    conn string
    pass word
    pass phrase
    pass code
    pass key
    pass wd
    basic auth
    http auth
    proxy auth
    auth header
    saml response
    saml assertion
    card number
    card no
    card num
    card pan
    card cvv
    credit card
    debit card
    cc number
    cc num
    pan number
    account number
    account no
    acct number
    routing number
    bank account
    social security
    social insurance
    sozial versicherungs nummer
    national id
    national insurance
    cpr number
    cpr nummer
    rodne cislo
    person nummer
    mynumber
    national identification
    identity number
    id number
    id card
    tax id
    tax number
    tax file number
    steuer id
    steuer nummer
    ausweis nummer
    codice fiscale
    numero dni
    numero securite sociale
    nhs number
    medicare number
    passport number
    passport no
    passport id
    drivers license
    driver license
    driving licence
    seed phrase
    recovery phrase
    mnemonic phrase
    private seed
    kata sandi
    kata laluan
    mot de passe
    mots de passe
    code secret
    code pin
    cle api
    cle secrete
    cle privee
    numero carte
    numero de carte
    numero tarjeta
    numero de tarjeta
    numero cartao
    numero do cartao
    karten nummer
    kredit karte
    clave secreta
    clave privada
    clave api
    clave acceso
    codigo verificacion
    codigo seguridad
    codigo acceso
    palavra passe
    chave secreta
    chave privada
    chave api
    parola ordine
    chiave segreta
    chiave privata
    geheimer schlussel
    privater schlussel
    mat khau
    fjale kalimi
    κωδικος προσβασης
    секретный ключ
    номер карты
    номер паспорта
    كلمة المرور
    كلمة السر
    رمز عبور
    پاس ورڈ
    """.strip().splitlines()
)
LONGEST_COMPOUND = max(map(len, COMPOUNDS))
LAST_WORDS = frozenset(words[-1] for words in COMPOUNDS)
FIRST_WORDS = frozenset(words[0] for words in COMPOUNDS if len(words) == 2)

# At the end of a name only: what comes after decides what the name is about. `KeyRules` says what each set means.
WEAK_TAILS = word_set(
    "auth session sessions sid email emails mail phone telephone mobile msisdn iban clave passport mnemonic"
    " telefon telefono dob birthdate birthday geburtsdatum pan снилс инн паспорт"
)
WEAK_PAIRS = frozenset(
    {("email", "address"), ("mail", "address"), ("phone", "number"), ("mobile", "number"), ("telephone", "number")}
)
DRAWN_TAILS = word_set("sig signature salt seed nonce ticket assertion pepper hmac")
FOLDER_TAILS = word_set("pwd oldpwd")

PLURALS = word_set("tokens cookies secrets passwords credentials jwts keys sessions emails passkeys")

# After a sensitive word: it only describes something about the secret.
AFTER = word_set(
    """
    count counts counter total num type types kind length len size bits bytes chars width
    at on until since expires expiry expired expire expiration exp ttl lifetime timeout age duration seconds minutes
    hours days date time timestamp interval period max min minimum maximum limit limits quota budget usage used use
    remaining left consumed cost price rate per prompt policy policies rule rules strength score complexity entropy
    enabled disabled required optional allowed valid invalid validity verified validated present missing exists
    set unset changed updated created issued rotated revoked deleted rotation generation attempts attempt tries
    retries failures failed failure success succeeded ok error errors status state result reason method methods mode
    scheme format version algorithm alg algo name names label title description field fields column columns param
    parameter url uri endpoint path file filename dir directory folder location host port provider issuer
    iss audience aud scope scopes role class model family group category store manager bucket ring index position
    offset level match matches matched mismatch consent banner domain samesite httponly secure same site
    supported support page link form input placeholder ref refs reference requested hasher
    """
)
# Before a sensitive word, directly.
BEFORE = word_set(
    """
    max min num n nb total count avg mean prompt completion is has had needs need requires require use uses using
    forgot forgotten per remaining used supports support allow allows show
    """
)
# Before the plural "tokens" only: language models count these.
BEFORE_TOKENS = word_set(
    "input output reasoning cached audio accepted rejected generated context new num thinking text image"
)

# What names written in one word are made of, beside the words above: `dbpassword`, `awssecretaccesskey`.
PARTS = word_set(
    """
    db database user username admin root my new old current confirm auth oauth access refresh id api app client csrf
    xsrf bot login session device push service server account master bearer web site app smtp ftp ssh sftp mail email
    mysql postgres postgresql pg redis mongo mongodb rabbitmq ldap wifi proxy http https github gitlab slack stripe
    aws gcp azure google security signing webhook reset verification activation registration deploy personal private
    consumer customer card key keys pass pwd code shared encryption host repeat retype again x
    """
)

# The private members of a JSON Web Key, which has a member `kty` (RFC 7518, sections 6.2 to 6.4).
KEY_MEMBERS = ("d", "p", "q", "dp", "dq", "qi", "oth", "r", "t", "k")
