"""benchmarks/gpu.sh, which is for a GPU, on a CPU."""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent
SCRIPT = ROOT / "benchmarks" / "gpu.sh"
spec = importlib.util.spec_from_file_location("gpu", ROOT / "benchmarks" / "gpu.py")
gpu = sys.modules["gpu"] = importlib.util.module_from_spec(spec)
spec.loader.exec_module(gpu)
COMMANDS = [
    name for name, part in gpu.parts(Path("work")).items() if part.command[2] == "se_lightning"
]


def start(*arguments, **environment):
    environment = {**os.environ, "PYTHON": sys.executable, **environment}
    return subprocess.run(
        [SCRIPT, *arguments], env=environment, capture_output=True, text=True, timeout=1700
    )


def python(code, limit=60):
    return gpu.Part("a part", limit, [sys.executable, "-c", code])


def test_bash_reads_the_script():
    assert subprocess.run(["bash", "-n", SCRIPT]).returncode == 0


def test_the_most_important_parts_take_at_most_8_minutes():
    known = gpu.parts(Path("work"))
    first = list(known)[: list(known).index("compiled") + 1]
    assert sum(known[name].limit for name in first) <= gpu.LIMIT == 480


@pytest.mark.parametrize("rehearse", [False, True])
@pytest.mark.parametrize("name", COMMANDS)
def test_each_command_composes(run_main, tmp_path, capfd, name, rehearse):
    command = gpu.parts(tmp_path, rehearse)[name].command
    code, error = run_main(*command[3:], "--cfg", "job", more=())
    assert code == 0, error


def test_the_tests_that_need_a_gpu_are_found():
    command = gpu.tests(rehearse=False)
    marked = [path for path in command if path.endswith(".py")]
    assert str(ROOT / "tests/models/layers/fused/test_gpu.py") in marked
    assert len(marked) >= 8
    assert all(Path(path).is_file() for path in marked)


def test_parts_that_fail_or_hang_are_reported_and_the_others_run(tmp_path, capsys):
    work, out = tmp_path / "work", tmp_path / "out"
    write = f"import pathlib; p = pathlib.Path({str(work / 'good')!r}); p.mkdir(parents=True)"
    parts = {
        "bad": python("raise SystemExit('the reason')"),
        "slow": python("import time; print('started', flush=True); time.sleep(60)", 3),
        "good": python(f"{write}; (p / 'result.json').write_text('{{\"metrics\": {{\"x\": 2}}}}')"),
    }
    assert gpu.run_all(parts, work, out) == 1
    report = json.loads((out / "gpu.json").read_text())
    states = {name: entry["state"] for name, entry in report.items()}
    assert states == {"bad": "exit code 1", "slow": "stopped after 3 s", "good": "passed"}
    assert report["good"]["result"]["metrics"] == {"x": 2}
    printed = capsys.readouterr().out
    assert "the reason" in printed
    assert "started" in printed
    assert "x 2" in printed
    assert len(list(out.iterdir())) <= 8


def test_when_the_time_is_over_the_other_parts_do_not_run(tmp_path, capsys):
    parts = {"first": python("import time; time.sleep(60)"), "second": python("")}
    assert gpu.run_all(parts, tmp_path, tmp_path, limit=1) == 1
    report = json.loads((tmp_path / "gpu.json").read_text())
    assert [entry["state"] for entry in report.values()] == ["stopped after 1 s", gpu.NO_TIME]


def test_all_parts_passed(tmp_path, capsys):
    assert gpu.run_all({"one": python("")}, tmp_path, tmp_path) == 0


def test_only_missing_packages_are_installed(tmp_path):
    for name in ("torch-2.0-py3-none-any.whl", "pydantic_core-2.0-py3-none-any.whl", "nil-1.whl"):
        (tmp_path / name).touch()
    assert gpu.missing(tmp_path) == [str(tmp_path / "nil-1.whl")]


def test_an_unknown_part_is_an_error():
    done = start("compilde")
    assert done.returncode == 2
    assert "no part named compilde; there are install, tests," in done.stderr


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_the_rehearsal_on_a_cpu(tmp_path):
    chosen = ("tests", "kernels", "waits", "eager", "training", "compiled", "compiled_inference")
    done = start(*chosen, REHEARSE="1", OUT=str(tmp_path), LIMIT="1500")
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    report = json.loads((tmp_path / "gpu.json").read_text())
    assert list(report) == ["install", *chosen]
    assert {row["network"] for row in report["eager"]["benchmark"]["results"]} == {
        "se_simple",
        "se_simple, gate=none",
    }
    assert report["training"]["result"]["metrics"]["test/acc1"] > 0
    assert report["kernels"]["result"]["copy_gb_per_s"] > 0
