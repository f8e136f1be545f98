"""Rules, dashboard and pages come from the declarations, and agree with the code, promtool and the verdicts."""

from __future__ import annotations

import io
import json
import os
import random
import re
import shutil
import subprocess
import sys
import threading
from pathlib import Path
from wsgiref.simple_server import WSGIRequestHandler, make_server

import pytest
from prometheus_client.parser import text_string_to_metric_families

from reliakit.core.errors import ConfigurationError
from reliakit.metrics import Label, Metrics, Objective, at_most, below, complete, count, ratio, zero
from reliakit.metrics.catalogue import CATALOGUE
from reliakit.metrics.commands import main
from reliakit.metrics.defaults import DEFAULTS
from reliakit.metrics.monitoring.alerts import alerts
from reliakit.metrics.monitoring.dashboard import LEFT_OUT, ROWS, dashboard, expressions
from reliakit.metrics.monitoring.kit import Kit, duration
from reliakit.metrics.monitoring.pages import catalogue, runbooks
from reliakit.metrics.monitoring.rules import rules, rules_test
from reliakit.metrics.monitoring.yaml import dump
from reliakit.metrics.windows import Span
from reliakit.testing import ManualClock

ROOT = Path(__file__).parent.parent
COMMITTED = {
    "monitoring/rules.yml": rules,
    "monitoring/rules_test.yml": rules_test,
    "monitoring/dashboard.json": dashboard,
    "docs/reference/catalogue.md": catalogue,
    "docs/runbooks.md": runbooks,
}
MINE = Kit(
    objectives=(
        Objective("quick", below("transaction", 0.05, 0.9), window=120, minimum=5, help="Quick ones."),
        Objective("few 5xx", ratio(count("http_server_requests", status="500"), "http_server_requests", 0.02)),
        Objective('no "timeouts" \\ at-all', zero("db_pool_timeouts")),
        Objective("none_dead", zero(count("outbox_failures", outcome="dead"), among="outbox_relayed")),
        Objective("logged", complete("log_records", count("log_records") - count("log_dropped"))),
        Objective("short_queue", at_most("http_server_active_requests", 50)),
    ),
    namespace="shop",
)


@pytest.fixture(scope="module")
def promtool():
    """Return a function that runs promtool and returns what it says, and whether it is content."""
    found = shutil.which("promtool")
    if found is None and os.environ.get("RELIAKIT_CI") == "1":
        pytest.fail("the checks need promtool on PATH: it is in every release of Prometheus")
    if found is None:
        pytest.skip("no promtool on PATH; it is in every release of Prometheus and in Debian's package of it")

    def run(*arguments, folder=None, text=None):
        done = subprocess.run(
            [found, *arguments], cwd=folder, input=text, capture_output=True, text=True, check=False, timeout=50
        )
        return done.returncode == 0, done.stdout + done.stderr

    return run


def written(folder, kit):
    (folder / "rules.yml").write_text(rules(kit), encoding="utf-8")
    (folder / "rules_test.yml").write_text(rules_test(kit), encoding="utf-8")
    return folder


def rule_expressions(kit):
    return [json.loads(text) for text in re.findall(r'^ +expr: (".*")$', rules(kit), re.MULTILINE)] + [
        alert.condition.expression(kit) for alert in alerts(kit)
    ]


class TestDrift:
    @pytest.mark.parametrize("path", COMMITTED)
    def test_what_is_committed_is_what_the_declarations_make(self, path):
        """Run `make monitoring` after a change of the catalogue, the objectives or the alerts."""
        assert (ROOT / path).read_text(encoding="utf-8") == COMMITTED[path](Kit()), (
            f"{path} is stale: make monitoring"
        )

    def test_nothing_of_it_depends_on_the_run(self):
        code = "from reliakit.metrics.commands import main\nfor w in ('rules', 'dashboard'): main(['metrics', w])"
        done = subprocess.run(
            [sys.executable, "-c", code],
            env={**os.environ, "PYTHONHASHSEED": "1" if sys.flags.hash_randomization else "2"},
            capture_output=True,
            check=True,
            timeout=50,
        )
        assert done.stdout == (rules(Kit()) + dashboard(Kit())).encode()


class TestNames:
    @pytest.mark.parametrize("kit", [Kit(), MINE], ids=["defaults", "mine"])
    def test_every_expression_names_metrics_and_labels_of_the_catalogue_only(self, kit):
        known, labels = set(), {"job", "instance", "slo", "le", "verdict"}
        for metric in kit.metrics:
            full = kit.full(metric.name)
            known |= {full, f"{full}_bucket", f"{full}_count"} if metric.kind == "histogram" else {full}
            labels |= {label.name for label in metric.labels}
        recorded = set(re.findall(r'record: "(.*)"', rules(kit)))
        for text in [*rule_expressions(kit), *expressions(kit)]:
            bare = re.sub(r'"[^"]*"', '""', text)
            words = set(re.findall(rf"(?:job:)?{kit.namespace}_[a-zA-Z0-9_:]+", bare))
            assert words, text
            assert words <= known | recorded, text
            named = re.findall(r"([a-z_]+)(?:=~|!=|=)\"", bare)
            for group in re.findall(r"by \(([^)]*)\)", bare):
                named += group.split(", ")
            assert set(named) <= labels, text

    def test_a_label_stands_only_where_its_metric_has_it(self):
        kit = Kit()
        by_name = {kit.full(metric.name): metric for metric in kit.metrics}
        for text in [*rule_expressions(kit), *expressions(kit)]:
            for name, inner in re.findall(r"(reliakit_[a-z0-9_]+)\{([^}]*)\}", text):
                if f"job:{name}" in text:
                    continue
                metric = by_name.get(name) or by_name[re.sub("_(bucket|count)$", "", name)]
                allowed = {"job", "instance", "le", *(label.name for label in metric.labels)}
                assert set(re.findall(r"([a-z_]+)(?:=~|!=|=)\"", inner)) <= allowed, text

    def test_every_metric_has_a_panel_or_a_reason_to_have_none(self):
        shown = {panel.metric for row in ROWS.values() for panel in row}
        shown |= {name for row in ROWS.values() for panel in row for name in panel.further}
        names = {metric.name for metric in CATALOGUE}
        assert shown | set(LEFT_OUT) <= names
        assert not shown & set(LEFT_OUT)
        text = dashboard(Kit())
        assert {name for name in names if f"reliakit_{name}" not in text} == set(LEFT_OUT)

    def test_the_dashboard_is_importable(self):
        made = json.loads(dashboard(Kit()))
        assert made["uid"] == "reliakit-overview"
        assert [one["name"] for one in made["templating"]["list"]] == ["datasource", "job", "instance"]
        panels = [one for panel in made["panels"] for one in (panel, *panel.get("panels", ()))]
        numbers = [panel["id"] for panel in panels]
        assert numbers == list(range(1, len(numbers) + 1))
        places = [(panel["gridPos"]["x"], panel["gridPos"]["y"]) for panel in panels if panel["type"] != "row"]
        assert len(set(places)) == len(places)

    def test_what_no_component_tells_is_marked_as_such_and_folded(self):
        """A metric that nothing in the package counts would be a row of empty panels, and a promise."""
        room = ROOT / "reliakit/metrics"
        told = "".join(path.read_text(encoding="utf-8") for path in room.glob("*.py") if path.stem != "catalogue")
        silent = {metric.name for metric in CATALOGUE if f'"{metric.name}"' not in told}
        assert silent == {metric.name for metric in CATALOGUE if metric.by_hand}
        folded = json.dumps([row for row in json.loads(dashboard(Kit()))["panels"] if row.get("collapsed")])
        assert {metric.name for metric in CATALOGUE if f"reliakit_{metric.name}" in folded} == silent
        assert not any(name in rules(Kit()) for name in silent)

    def test_every_runbook_url_leads_to_a_chapter(self):
        page = (ROOT / "docs/runbooks.md").read_text(encoding="utf-8")
        anchors = {title.lower() for title in re.findall(r"^## (\S+)$", page, re.MULTILINE)}
        links = re.findall(r'runbook_url: "(.*)#(.*)"', rules(Kit()))
        assert {target for target, _ in links} == {"docs/runbooks.md"}
        assert {anchor for _, anchor in links} == anchors
        assert len(links) == len(alerts(Kit())) == len(anchors)

    def test_a_bare_namespace_leaves_the_names_bare(self):
        text = rules(Kit(namespace=""))
        assert "sum by (job) (increase(transaction_duration_seconds_count[5m]))" in text
        assert "reliakit_" not in text

    def test_an_objective_on_nothing_is_refused(self):
        with pytest.raises(ConfigurationError, match="no metric answers to 'nonsense'"):
            rules(Kit(objectives=(Objective("x", zero("nonsense")),)))

    def test_every_default_objective_says_what_it_wants(self):
        assert all(one.help.endswith(".") for one in DEFAULTS)


class TestPromtool:
    def test_the_rules_are_valid_and_every_alert_stands_its_trials(self, promtool, tmp_path):
        written(tmp_path, Kit())
        is_content, said = promtool("check", "rules", "rules.yml", folder=tmp_path)
        assert is_content, said
        assert f"{rules(Kit()).count('expr:')} rules found" in said
        is_content, said = promtool("test", "rules", "rules_test.yml", folder=tmp_path)
        assert is_content, said

    def test_so_do_those_of_ones_own_objectives(self, promtool, tmp_path, monkeypatch):
        monkeypatch.setattr("reliakit.metrics.monitoring.alerts._COMPONENTS", ())
        written(tmp_path, MINE)
        is_content, said = promtool("test", "rules", "rules_test.yml", folder=tmp_path)
        assert is_content, said

    def test_so_do_those_of_the_strictest_and_the_most_lenient_ones(self, promtool, tmp_path, monkeypatch):
        monkeypatch.setattr("reliakit.metrics.monitoring.alerts._COMPONENTS", ())
        failed = count("http_server_requests", status="500")
        extreme = Kit(
            objectives=(
                Objective("all quick", below("transaction", 0.05, 1.0), minimum=1),
                Objective("half quick", below("transaction", 0.05, 0.5), minimum=1000),
                Objective("no 5xx", ratio(failed, "http_server_requests", 0)),
                Objective("most 5xx", ratio(failed, "http_server_requests", 0.9)),
                Objective("any 5xx", ratio(failed, "http_server_requests", 1)),
            )
        )
        assert not any("Any5xx" in alert.name for alert in alerts(extreme))  # nothing could ever break it
        written(tmp_path, extreme)
        is_content, said = promtool("test", "rules", "rules_test.yml", folder=tmp_path)
        assert is_content, said

    def test_trials_fail_when_an_alert_is_broken(self, promtool, tmp_path, monkeypatch):
        pool = [one for one in alerts(Kit()) if one.name == "ReliakitPoolExhausted"]
        monkeypatch.setattr("reliakit.metrics.monitoring.alerts._COMPONENTS", pool)
        written(tmp_path, Kit(objectives=DEFAULTS[1:2]))
        text = (tmp_path / "rules.yml").read_text(encoding="utf-8")
        for right, wrong in {
            '5m{slo="rollback_rate"} > 0.144': '5m{slo="rollback_rate"} > 1.44',
            '30m{slo="rollback_rate"} > 0.06': '30m{slo="rollback_rate"} > 1.06',
            "pool_timeouts_total[5m])) > 0": "pool_timeouts_total[5m])) >= 0",
        }.items():
            assert right in text
            text = text.replace(right, wrong)
        (tmp_path / "rules.yml").write_text(text, encoding="utf-8")
        is_content, said = promtool("test", "rules", "rules_test.yml", folder=tmp_path)
        assert not is_content
        wrong = {"ReliakitRollbackRateBurnsFast", "ReliakitPoolExhausted"}
        assert set(re.findall(r"alertname: (\w+)", said)) == wrong

    def test_every_expression_of_the_dashboard_parses(self, promtool, tmp_path):
        texts = [text.replace("$__rate_interval", "5m") for text in expressions(Kit())]
        group = {"name": "panels", "rules": [{"record": f"panel:{n}", "expr": text} for n, text in enumerate(texts)]}
        (tmp_path / "panels.yml").write_text(dump({"groups": [group]}), encoding="utf-8")
        is_content, said = promtool("check", "rules", "panels.yml", folder=tmp_path)
        assert is_content, said
        assert f"{len(texts)} rules found" in said

    def test_the_exposition_is_to_its_taste(self, promtool):
        metrics = Metrics()
        for metric in CATALOGUE:
            getattr(metrics, "observe" if metric.kind == "histogram" else "increment")(metric.name, 1)
        is_content, said = promtool("check", "metrics", text=metrics.render().body.decode())
        assert is_content, said

    def test_live_verdicts_and_those_of_the_rules_agree(self, promtool, tmp_path):
        written(tmp_path, Kit())
        used = set(re.findall(r"reliakit_[a-z_]+", " ".join(rule_expressions(Kit()))))
        series, expected = [], []
        for seed in range(16):
            one, verdicts = lived(seed, used)
            series += one
            expected += [
                {
                    "labels": (
                        '{__name__="job:reliakit_slo_verdict:increase5m", '
                        f'job="case-{seed}", slo="{verdict.objective}", verdict="{verdict.verdict}"}}'
                    ),
                    "value": 1,
                }
                for verdict in verdicts
                if (verdict.objective, verdict.value) != ("error_resolution", None)  # no gauge, no sample
            ]
        told = {sample["labels"].rpartition("verdict=")[2].strip('"}') for sample in expected}
        assert told == {"met", "at_risk", "breached", "insufficient_data"}
        asked = {
            "expr": "job:reliakit_slo_verdict:increase5m == 1",
            "eval_time": "6m",
            "exp_samples": expected,
        }
        test = {"interval": "1m", "input_series": series, "promql_expr_test": [asked]}
        (tmp_path / "agree.yml").write_text(
            dump({"rule_files": ["rules.yml"], "evaluation_interval": "6m", "tests": [test]}), encoding="utf-8"
        )
        is_content, said = promtool("test", "rules", "agree.yml", folder=tmp_path)
        assert is_content, said


def lived(seed, used):
    """Return the samples of six random minutes, as promtool takes them, and the live verdicts at their end."""
    draw, clock = random.Random(seed), ManualClock(start=5.0)
    metrics = Metrics(clock=clock)
    size = draw.choice([2, 20, 200])
    share = draw.choice([0.0, 0.002, 0.01, 0.1])
    trouble = draw.choice([0.0, 0.0, 0.2])
    samples = {}
    for minute in range(7):
        if minute:
            clock.advance(60)
            live(metrics, draw, size, share, trouble)
        for family in text_string_to_metric_families(metrics.render().body.decode()):
            for sample in family.samples:
                if sample.name in used:
                    key = sample.name, tuple(sample.labels.items())
                    samples.setdefault(key, ["_"] * minute).append(f"{sample.value:g}")
    series = []
    for (name, labels), values in samples.items():
        inner = ",".join(f'{label}="{value}"' for label, value in (("job", f"case-{seed}"), *labels))
        series.append({"series": f"{name}{{{inner}}}", "values": " ".join(values)})
    return series, metrics.slo()


def live(metrics, draw, size, share, trouble):
    for _ in range(draw.randint(0, size)):
        status = "rollback" if draw.random() < share else draw.choice(["commit"] * 9 + ["retry"])
        metrics.increment("transaction", status=status)
        metrics.observe(
            "transaction", draw.choice([0.2, 0.1001]) if draw.random() < 2 * share else 0.1, status=status
        )
        if status == "rollback" and draw.random() < 0.2:
            metrics.increment("transaction_deliberate_rollbacks")
        metrics.increment("log_secrets", result="masked")
        metrics.increment("error", type="E")
    if draw.random() < trouble:
        metrics.increment("db_errors", sqlstate="40P01")
        if draw.random() < 0.5:
            metrics.increment("transaction_retries", reason="deadlock")
    for name, labels in {
        "db_pool_leaked_connections": {},
        "error_untracked": {},
        "log_secrets": {"result": "leaked"},
    }.items():
        if draw.random() < trouble / 4:
            metrics.increment(name, **labels)
    if draw.random() < trouble:
        metrics.observe("error_oldest_open_seconds", draw.choice([10.0, 3600.0, 3601.0]))


class TestSloCommand:
    def scraped(self, monkeypatch, metrics):
        monkeypatch.setattr(sys, "stdin", io.StringIO(metrics.render().body.decode()))

    def test_nothing_breached_is_a_success(self, monkeypatch, capsys):
        metrics = Metrics()
        metrics.increment("transaction", 400, status="commit")
        self.scraped(monkeypatch, metrics)
        assert main(["slo", "-"]) == 0
        lines = capsys.readouterr().out.splitlines()
        assert lines[0].split() == ["objective", "verdict", "value", "target", "events", "budget", "left", "pace"]
        assert [line.split()[0] for line in lines[1:]] == [one.name for one in DEFAULTS]
        (rate,) = [line for line in lines if line.startswith("rollback_rate")]
        assert re.split("  +", rate)[:5] == ["rollback_rate", "met", "0 %", "at most 1 %", "400"]

    def test_a_breached_objective_is_a_failure_and_tells_its_pace(self, monkeypatch, capsys):
        clock = ManualClock()
        metrics = Metrics("shop", clock=clock)
        clock.advance(86_400)
        metrics.increment("transaction", 380, status="commit")
        metrics.increment("transaction", 20, status="rollback")
        for _ in range(50):
            metrics.observe("transaction", 0.042, status="commit")
        self.scraped(monkeypatch, metrics)
        assert main(["slo", "-"]) == 1
        told = capsys.readouterr().out
        assert "5 times what it may: budget gone in 5 d at this pace" in told
        assert re.search(r"100 %, p95 4[12]\.?\d* ms", told)

    def test_strict_wants_every_objective_met(self, monkeypatch):
        metrics = Metrics()
        self.scraped(monkeypatch, metrics)
        assert main(["slo", "-"]) == 0
        self.scraped(monkeypatch, metrics)
        assert main(["slo", "-", "--strict"]) == 1

    @pytest.mark.parametrize("text", ["", "up 1\n", "{", "<html>"])
    def test_what_carries_no_verdicts_is_said(self, monkeypatch, capsys, text):
        monkeypatch.setattr(sys, "stdin", io.StringIO(text))
        assert main(["slo", "-"]) == 2
        assert capsys.readouterr().err.startswith("-: ")

    @pytest.mark.parametrize("url", ["file:///etc/passwd", "ftp://x", "nonsense", "http://127.0.0.1:9"])
    def test_an_address_that_cannot_be_read_is_said(self, capsys, url):
        assert main(["slo", url, "--timeout", "5"]) == 2
        assert capsys.readouterr().err.startswith(f"{url}: ")

    def test_a_service_is_asked(self, capsys):
        metrics = Metrics()
        metrics.increment("db_pool_leaked_connections", pool="main")

        class Silent(WSGIRequestHandler):
            def log_message(self, *_):
                pass

        with make_server("127.0.0.1", 0, metrics.wsgi_app, handler_class=Silent) as server:
            thread = threading.Thread(target=server.serve_forever, args=(0.01,))
            thread.start()
            url = f"http://127.0.0.1:{server.server_port}/"
            try:
                assert main(["slo", url, url]) == 1
            finally:
                server.shutdown()
                thread.join()
        told = capsys.readouterr().out
        assert told.count(url) == 2
        assert "leaked_connections   breached" in told

    def test_of_several_processes_behind_one_scrape_the_worst_is_told(self, monkeypatch, capsys):
        text = "".join(
            f"reliakit_slo_{name} {value}\n"
            for name, value in {
                'verdict{slo="r",verdict="met"}': 1,
                'verdict{slo="r",verdict="breached"}': 1,
                'target{slo="r",goal="ratio"}': 0.01,
                'value{slo="r",pid="1"}': 0.0,
                'value{slo="r",pid="2"}': 0.5,
                'error_budget_remaining_ratio{slo="r",window="30d",pid="1"}': 1,
                'error_budget_remaining_ratio{slo="r",window="30d",pid="2"}': 0.25,
            }.items()
        )
        monkeypatch.setattr(sys, "stdin", io.StringIO(text))
        assert main(["slo", "-"]) == 1
        assert re.split("  +", capsys.readouterr().out.splitlines()[1]) == [
            "r",
            "breached",
            "50 %",
            "at most 1 %",
            "25%",
        ]


def shop():
    """Return a Metrics with a metric and an objective of its own."""
    metrics = Metrics("shop")
    jobs = metrics.counter("jobs", "Jobs done.", [Label.one_of("result", "ok", "failed")])
    metrics.objective(
        Objective("jobs_done", ratio(count(jobs, result="failed"), jobs, 0.1), help="Most jobs are done.")
    )
    return metrics


class TestMetricsCommand:
    def test_ones_own_declarations_are_part_of_it(self, capsys, promtool, tmp_path):
        for what, file in (("rules", "rules.yml"), ("rules-test", "rules_test.yml")):
            assert main(["metrics", what, "--of", f"{__name__}:shop"]) == 0
            (tmp_path / file).write_text(capsys.readouterr().out, encoding="utf-8")
        text = (tmp_path / "rules.yml").read_text(encoding="utf-8")
        assert "ReliakitJobsDoneBurnsFast" in text
        assert 'increase(jobs_total{result=\\"failed\\"}[5m])' in text
        is_content, said = promtool("check", "rules", "rules.yml", folder=tmp_path)
        assert is_content, said
        assert main(["metrics", "catalogue", "--of", f"{__name__}:shop"]) == 0
        page = capsys.readouterr().out
        assert "## Your own\n\n" in page
        assert "| `jobs_total` | counter | **result**: ok, failed | Jobs done. |" in page
        assert "jobs_total" in dashboard(Kit.of(shop()))

    @pytest.mark.parametrize("of", ["nonsense:x", "reliakit.metrics:nonsense", "reliakit.metrics:LATENCY"])
    def test_what_leads_to_no_metrics_is_said(self, capsys, of):
        assert main(["metrics", "rules", "--of", of]) == 2
        assert capsys.readouterr().err

    @pytest.mark.parametrize("what", ["catalogue", "rules", "rules-test", "dashboard", "runbooks"])
    def test_each_prints_what_is_committed(self, capsys, what):
        assert main(["metrics", what]) == 0
        printed = capsys.readouterr().out
        assert printed in [(ROOT / path).read_text(encoding="utf-8") for path in COMMITTED]

    def test_namespace_and_runbooks_can_be_ones_own(self, capsys):
        assert main(["metrics", "rules", "--namespace", "shop", "--runbooks", "https://x.example/books"]) == 0
        printed = capsys.readouterr().out
        assert "shop_transaction_total" in printed
        assert 'runbook_url: "https://x.example/books#reliakitdeadlocks"' in printed

    def test_a_namespace_that_is_none_is_refused(self, capsys):
        assert main(["metrics", "rules", "--namespace", "a b"]) == 2
        assert "--namespace" in capsys.readouterr().err


class TestYaml:
    def test_texts_numbers_and_nesting(self):
        value = {"a": [{"b": "x y", "c": 1}, {"b": 'q"\\', "c": [1.5, True, None]}], "d": "yes", "e": [], "f": "1m"}
        assert dump(value) == (
            'a:\n  - b: "x y"\n    c: 1\n  - b: "q\\"\\\\"\n    c:\n      - 1.5\n      - true\n      - null\n'
            'd: "yes"\ne: []\nf: "1m"\n'
        )

    def test_a_text_of_several_lines_stays_as_it_is(self):
        assert dump({"expr": "a\nand b"}) == "expr: |-\n  a\n  and b\n"


def test_lengths_of_time_are_written_as_prometheus_reads_them():
    assert [duration(seconds) for seconds in (0.5, 45, 90, 120, 3600, 86_400, 2_592_000)] == [
        "500ms",
        "45s",
        "90s",
        "2m",
        "1h",
        "1d",
        "30d",
    ]
    assert Span(1, 2).period == 2
