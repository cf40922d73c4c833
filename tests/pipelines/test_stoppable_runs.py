"""A run that is told to stop, or killed: nothing is left of it, nothing new starts, and the next one goes on."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from uuid import UUID

import psutil
import pytest

from densitywatch.errors import DensitywatchError
from pipelines import run_processes, stoppable_runs
from tests.pipelines.checkout import own_environment

pytestmark = pytest.mark.server

PROJECT = Path(__file__).parents[2]
RUN, STAGE = (Path(__file__).with_name(name) for name in ("stoppable_run.py", "stoppable_stage.py"))
TOKEN = "DENSITYWATCH_TEST_OF_STOPPING"
STOPPED = "pipelines: stopped; run it again to go on where it was\n"
WITHIN = 5.0

GRAPH = f"""
stages:
  fetch:
    cmd: mkdir -p data && echo raw > data/raw
    outs: [data/raw]
  train:
    foreach: [a, b, c]
    do:
      cmd: date +%s.%N >> started.txt && {sys.executable} {STAGE} ${{item}}
      deps: [data/raw]
      outs: ["models/${{item}}"]
"""


def heed_signals() -> None:
    """Tests that run in the background ignore the signals of a terminal, and all that they start does so as well."""
    for number in (signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_DFL)


def command_of(process: psutil.Process) -> str:
    """Its command, or nothing where it has ended meanwhile."""
    try:
        return str(process.cmdline())
    except psutil.NoSuchProcess:
        return ""


class Project:
    """A small DVC project, of which every process is known by a variable of its environment."""

    def __init__(self, root: Path) -> None:
        self.root = root
        root.mkdir()
        (root / "params.yaml").write_bytes((PROJECT / "params.yaml").read_bytes())
        (root / "dvc.yaml").write_text(GRAPH)
        for command in (["git", "init", "-q"], [sys.executable, "-m", "dvc", "init", "-q"]):
            subprocess.run(command, cwd=root, check=True)
        (root / ".gitignore").write_text("/models\n/checkpoints\n/var\n")
        paths = os.pathsep.join([str(PROJECT / "src"), str(PROJECT)])
        self.environment = own_environment(root) | {TOKEN: str(root), "PYTHONPATH": paths, "SHELL": "/bin/sh"}
        self.environment.pop("PYTHONWARNINGS", None)

    def start(self, *arguments: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, str(RUN), *(arguments or ["retrain"])],
            cwd=self.root,
            env=self.environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,  # the foreground group of a terminal of its own
            preexec_fn=heed_signals,
        )

    def processes(self) -> list[psutil.Process]:
        """What lives of this project: its environment or its folder says so."""
        found = []
        for process in psutil.process_iter():
            try:
                mine = process.environ().get(TOKEN) == str(self.root) or process.cwd() == str(self.root)
                if mine and process.status() != psutil.STATUS_ZOMBIE:
                    found.append(process)
            except (psutil.Error, OSError):
                continue
        return found

    def left(self, until: float) -> list[str]:
        """The processes that are still there at `until`."""
        while (found := self.processes()) and time.monotonic() < until:
            time.sleep(0.05)
        return [f"{process.pid} {command_of(process)}" for process in found if process.is_running()]

    def training(self) -> int:
        """How many stages compute right now."""
        return sum(str(STAGE) in command_of(process) for process in self.processes())

    def wait_for_training(self, process: subprocess.Popen[str]) -> None:
        while not (self.training() and any(self.root.glob("started.txt"))):
            assert process.poll() is None, process.communicate()
            time.sleep(0.1)

    def started_after(self, moment: float) -> list[float]:
        file = self.root / "started.txt"
        times = [float(line) for line in file.read_text().split()] if file.is_file() else []
        return [started for started in times if started > moment + 0.5]

    def weights(self) -> dict[str, bytes]:
        return {name: (self.root / "models" / name / "model.safetensors").read_bytes() for name in "abc"}


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """The weights of trainings that were never stopped."""
    root = tmp_path_factory.mktemp("unbroken")
    environment = own_environment(root) | {"PYTHONPATH": str(PROJECT / "src")}
    trainings = [
        subprocess.Popen([sys.executable, STAGE, name], cwd=root, env=environment, stderr=subprocess.DEVNULL)
        for name in "abc"
    ]
    assert [training.wait() for training in trainings] == [0, 0, 0]
    return {name: (root / "models" / name / "model.safetensors").read_bytes() for name in "abc"}


KINDS = ("Ctrl-C in a terminal", "SIGINT", "SIGTERM", "SIGHUP", "SIGKILL")
CODES = {"Ctrl-C in a terminal": 130, "SIGINT": 130, "SIGTERM": 143, "SIGHUP": 129, "SIGKILL": -signal.SIGKILL}


def strike(kind: str, process: subprocess.Popen[str]) -> None:
    if kind == "Ctrl-C in a terminal":
        os.killpg(process.pid, signal.SIGINT)
    else:
        process.send_signal(signal.Signals[kind])


@pytest.mark.timeout(1500)
def test_stopped_or_killed_at_random_moments_a_run_leaves_nothing_and_the_next_ends_with_the_same_weights(
    tmp_path: Path, unbroken: dict[str, bytes]
) -> None:
    seed = random.SystemRandom().randrange(2**32)
    print(f"seed {seed}")
    rng = random.Random(seed)
    project = Project(tmp_path / "project")
    kinds = [*KINDS, *KINDS]
    rng.shuffle(kinds)
    for i, kind in enumerate(kinds):
        process = project.start()
        if i % 2:  # every other one while stages compute; the rest anywhere on the way there
            project.wait_for_training(process)
            delay = rng.uniform(0.0, 3.0)
        else:
            delay = rng.uniform(1.0, 10.0)
        time.sleep(delay)
        assert process.poll() is None, process.communicate()
        computing = project.training()
        moment, clock = time.time(), time.monotonic()
        strike(kind, process)
        out, err = process.communicate(timeout=60)
        took = time.monotonic() - clock
        print(f"{kind} after {delay:.2f} s, {computing} stages computing: gone after {took:.2f} s")
        assert project.left(clock + WITHIN + 2) == [], (kind, delay)
        assert process.returncode == CODES[kind], (out, err)
        if kind != "SIGKILL":
            assert took < WITHIN + 1, kind
            assert project.started_after(moment) == []
            assert err.endswith(STOPPED), err
            assert err.count("stopped") == 1
            assert "Traceback" not in out + err, out + err
    process = project.start()
    out, err = process.communicate(timeout=600)
    assert process.returncode == 0, out + err
    assert "had been killed" not in out + err, "DVC warns of the locks of the dead"
    assert project.weights() == unbroken
    assert project.left(time.monotonic() + 10) == []


IGNORED = """
import os, signal, time
from pathlib import Path
from pipelines import stoppable_runs

class Struck:
    def __del__(self):  # Python ignores an exception here, and prints its traceback
        os.kill(os.getpid(), signal.SIGHUP)
        for _ in range(10):
            time.sleep(0.1)

with stoppable_runs.stoppable(Path.cwd(), command=True):
    struck = Struck()
    del struck
    time.sleep(60)
"""


def test_a_signal_where_python_ignores_exceptions_prints_no_traceback(tmp_path: Path) -> None:
    environment = own_environment(tmp_path) | {"PYTHONPATH": os.pathsep.join([str(PROJECT / "src"), str(PROJECT)])}
    ended = subprocess.run(
        [sys.executable, "-c", IGNORED],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        timeout=60,
        preexec_fn=heed_signals,
    )
    assert (ended.returncode, ended.stderr) == (129, STOPPED)


def deployed_run(root: Path) -> dict[str, str]:
    """A run of a deployment of `retrain`, and the environment in which a worker starts its process."""
    from prefect.client.orchestration import get_client
    from prefect.settings import PREFECT_API_URL

    from pipelines.retrain import retrain

    with get_client(sync_client=True) as client:
        flow = client.create_flow(retrain)
        deployment = client.create_deployment(
            flow, "retrain", path=str(root), entrypoint="pipelines/retrain.py:retrain"
        )
        run = client.create_flow_run_from_deployment(deployment, name="cancelled")
    return {"PREFECT_API_URL": str(PREFECT_API_URL.value()), "PREFECT__FLOW_RUN_ID": str(run.id)}


@pytest.mark.usefixtures("prefect_server")
def test_a_deployments_run_ends_with_its_stages_when_it_is_cancelled_and_gives_its_slots_back(tmp_path: Path) -> None:
    from prefect.client.orchestration import get_client

    from pipelines.device_slots import DEVICE_LIMIT, ensure_device_limit

    ensure_device_limit()
    # five seconds may be too few to reach the server on a machine that is busy, so there are three attempts
    for attempt in range(3):
        project = Project(tmp_path / f"project{attempt}")
        deployed = deployed_run(project.root)
        project.environment |= deployed
        process = project.start("flow")
        while not (project.root / "steps.txt").is_file():
            assert process.poll() is None, process.communicate()
            time.sleep(0.1)
        moment, clock = time.time(), time.monotonic()
        process.send_signal(signal.SIGTERM)  # what Prefect's worker does
        out, err = process.communicate(timeout=60)
        assert time.monotonic() - clock < WITHIN + 1
        assert process.returncode in (-signal.SIGTERM, 143), out + err
        assert project.left(clock + WITHIN + 2) == []
        assert project.started_after(moment) == []
        assert list(project.root.glob("checkpoints/*/state.safetensors"))
        with get_client(sync_client=True) as client:
            state = client.read_flow_run(UUID(deployed["PREFECT__FLOW_RUN_ID"])).state
            slots = client.read_global_concurrency_limit_by_name(DEVICE_LIMIT).active_slots
        assert state is not None
        if state.is_final():
            break
    assert state.is_final(), state
    assert slots == 0


def test_what_a_killed_run_and_its_killed_watch_have_left_the_next_run_ends(tmp_path: Path) -> None:
    project = Project(tmp_path / "project")
    process = project.start()
    project.wait_for_training(process)
    [watch] = [child for child in psutil.Process(process.pid).children() if "processes.py" in command_of(child)]
    watch.kill()
    process.kill()
    process.communicate()
    left = {found.pid for found in project.processes()}
    assert left
    again = project.start()
    while {found.pid for found in project.processes()} & left:
        assert again.poll() is None
        time.sleep(0.1)
    project.wait_for_training(again)
    again.send_signal(signal.SIGINT)
    out, err = again.communicate(timeout=60)
    assert again.returncode == 130, err
    assert err.endswith(STOPPED), err
    assert "had been killed" not in out
    assert project.left(time.monotonic() + 5) == []


def step_the_clock(monkeypatch: pytest.MonkeyPatch, seconds: float) -> None:
    """As when the machine's clock is set: the boot time, from which psutil counts a start, moves by the whole step."""
    moved = psutil.boot_time() + seconds
    monkeypatch.setattr("psutil._psplatform.boot_time", lambda: moved)


@pytest.fixture
def stage(tmp_path: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A process of this very process's run."""
    environment = os.environ | {run_processes.MARK: run_processes.new_mark(tmp_path)}
    with subprocess.Popen(["sleep", "60"], env=environment) as process:
        yield process
        process.kill()


@pytest.mark.parametrize("seconds", [3600.0, -3600.0])
def test_a_run_that_goes_on_is_not_gone_when_the_clock_is_set(
    tmp_path: Path, stage: subprocess.Popen[bytes], monkeypatch: pytest.MonkeyPatch, seconds: float
) -> None:
    mark = run_processes.new_mark(tmp_path)
    assert [process.pid for process in run_processes.of_run(mark)] == [stage.pid]
    step_the_clock(monkeypatch, seconds)
    assert run_processes.new_mark(tmp_path) == mark
    assert run_processes.left_behind(tmp_path) == []


def test_the_marks_of_earlier_versions_are_understood(tmp_path: Path) -> None:
    own = psutil.Process()
    for created, left in ((own.create_time(), 0), (own.create_time() - 1e6, 1)):
        environment = os.environ | {run_processes.MARK: f"{own.pid} {created} {tmp_path.resolve()}"}
        with subprocess.Popen(["sleep", "60"], env=environment) as process:
            assert len(run_processes.left_behind(tmp_path)) == left
            process.kill()


def test_a_process_is_another_one_after_a_restart_of_the_machine(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = psutil.Process()
    before = run_processes.start_of(own)
    assert run_processes.process_of(own.pid, before) == own
    (tmp_path / "boot_id").write_text("another\n")
    monkeypatch.setattr(run_processes, "BOOT", tmp_path / "boot_id")
    assert run_processes.process_of(own.pid, before) is None


HOLD = """import sys; from pathlib import Path; from pipelines import run_lock
with run_lock.one_run_at_a_time(Path(sys.argv[1])):
    print(flush=True); sys.stdin.read()
"""


def test_a_start_that_will_be_refused_ends_nothing(tmp_path: Path) -> None:
    gone = subprocess.Popen(["true"])
    environment = os.environ | {run_processes.MARK: f"{gone.pid} 1@earlier {tmp_path.resolve()}"}
    gone.wait()
    with subprocess.Popen(["sleep", "60"], env=environment) as left:
        holds = subprocess.Popen(
            [sys.executable, "-c", HOLD, str(tmp_path)],
            env=os.environ | {"PYTHONPATH": os.pathsep.join([str(PROJECT / "src"), str(PROJECT)])},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        with holds:
            assert holds.stdout is not None
            holds.stdout.readline()
            with (
                pytest.raises(DensitywatchError, match="another run"),
                stoppable_runs.stoppable(tmp_path),
                stoppable_runs.one_run(tmp_path),
            ):
                pass
            assert left.poll() is None
            holds.kill()
        with stoppable_runs.stoppable(tmp_path), stoppable_runs.one_run(tmp_path):
            assert left.wait(10) != 0
