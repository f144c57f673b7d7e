"""A throw-away SLURM on this machine: one controller and several slurmd, each with fake A100s (root, no systemd).

It lives in a fresh folder with its own ports, knows no accounting database, and leaves nothing behind. Every
partition has nodes of its own, so that one test's preemption or dead node does not touch another's jobs.
"""

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import time
from pathlib import Path

PROGRAMS = ("slurmctld", "slurmd", "sbatch", "srun", "squeue", "munged")

CONF = """\
ClusterName=throwaway
SlurmctldHost=localhost
SlurmctldPort={port}
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=cred_expire=20
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool/%n
SlurmctldLogFile={folder}/log/ctld.log
SlurmdLogFile={folder}/log/%n.log
SlurmctldPidFile={folder}/ctld.pid
SlurmdPidFile={folder}/%n.pid
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SchedulerType=sched/backfill
SchedulerParameters=bf_interval=2,sched_interval=2,batch_sched_delay=0
SelectType=select/cons_tres
SelectTypeParameters=CR_Core_Memory
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
ReturnToService=2
SlurmdTimeout=20
KillWait=10
MinJobAge=300
MpiDefault=none
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
SlurmctldParameters=preempt_send_user_signal
GresTypes=gpu
SlurmdParameters=config_overrides
{nodes}
{partitions}
"""


def why_not() -> str | None:
    """Why no SLURM can be started here, or None."""
    missing = [p for p in PROGRAMS if shutil.which(p) is None and not Path("/usr/sbin", p).exists()]
    if missing:
        return f"not installed: {', '.join(missing)} (apt-get install slurmctld slurmd slurm-client munge)"
    return None if os.geteuid() == 0 else "SLURM's daemons and fake GPUs (mknod) need root"


def wait_for(what, condition, deadline: float = 60.0, every: float = 0.5):
    """The first true value of `condition()`; AssertionError naming `what` after `deadline` seconds."""
    end = time.monotonic() + deadline
    while not (value := condition()):
        assert time.monotonic() < end, f"waited {deadline:.0f} s in vain for {what}"
        time.sleep(every)
    return value


def free_ports(n: int) -> int:
    """First of `n` ports in a row that nobody listens on."""
    for port in range(28800, 32000, n):
        with contextlib.ExitStack() as stack:
            try:
                for i in range(n):
                    stack.enter_context(socket.socket()).bind(("localhost", port + i))
            except OSError:
                continue
            return port
    raise AssertionError("no free ports")


class Slurm:
    """`partitions`: {name: (nodes, GraceTime in s)}; each gets a partition `<name>_urgent` to preempt it."""

    def __init__(self, folder: Path, partitions: dict[str, tuple[int, int]]) -> None:
        self.folder = folder
        for name in ("state", "log", "spool"):
            (folder / name).mkdir(parents=True)
        self.nodes = {p: [f"{p}{i + 1}" for i in range(n)] for p, (n, _) in partitions.items()}
        self._munged: int | None = None
        names = [node for nodes in self.nodes.values() for node in nodes]
        port = free_ports(len(names) + 1)
        subprocess.run(["mknod", folder / "gpu0", "c", "195", "0"], check=True)
        nodes, rows, gres = [], [], []
        for i, name in enumerate(names):
            (folder / "spool" / name).mkdir()
            nodes.append(
                f"NodeName={name} NodeHostname=localhost Port={port + 1 + i} CPUs=16 RealMemory=100000"
                f" Gres=gpu:a100:1 Feature=a100 State=UNKNOWN"
            )
            gres.append(f"NodeName={name} Name=gpu Type=a100 File={folder}/gpu0")
        for i, (name, (_, grace)) in enumerate(partitions.items()):
            members = ",".join(self.nodes[name])
            default = "Default=YES" if i == 0 else ""
            rows.append(
                f"PartitionName={name} Nodes={members} {default} DefaultTime=10 MaxTime=7-0 State=UP"
                f" PriorityTier=1 PreemptMode=REQUEUE GraceTime={grace}"
            )
            rows.append(f"PartitionName={name}_urgent Nodes={members} MaxTime=7-0 State=UP PriorityTier=10")
        conf = CONF.format(port=port, folder=folder, nodes="\n".join(nodes), partitions="\n".join(rows))
        (folder / "slurm.conf").write_text(conf)
        (folder / "gres.conf").write_text("\n".join(gres) + "\n")
        self.env = {"SLURM_CONF": str(folder / "slurm.conf"), "PATH": os.environ["PATH"] + ":/usr/sbin:/sbin"}

    def start(self) -> "Slurm":
        self._munged = start_munge()
        self.run("slurmctld", "-c")
        for nodes in self.nodes.values():
            for node in nodes:
                self.run("slurmd", "-N", node)
        total = sum(map(len, self.nodes.values()))
        wait_for(
            f"{total} idle nodes",
            lambda: self.run("sinfo", "-h", "-N", "-o", "%N %t").count(" idle") >= 2 * total,
        )
        return self

    def run(self, *command: str, check: bool = True) -> str:
        """stdout of a command with this SLURM's configuration."""
        done = subprocess.run(command, env=os.environ | self.env, capture_output=True, text=True)
        assert not check or done.returncode == 0, f"{command}: {done.stderr}"
        return done.stdout

    def jobs(self) -> dict[str, str]:
        """{job id: state} of all jobs known."""
        lines = self.run("squeue", "-h", "-r", "-t", "all", "-o", "%i %T").splitlines()
        return dict(line.split() for line in lines)

    def preempt(self, partition: str) -> None:
        """Let a job of higher priority take all nodes of `partition` for a moment."""
        nodes = str(len(self.nodes[partition]))
        self.run("sbatch", "-p", f"{partition}_urgent", "-N", nodes, "--exclusive", "-o", "/dev/null",
                 "--wrap", "sleep 1")  # fmt: skip

    def kill_node(self, node: str) -> None:
        """slurmd, stepds and payload of `node` die at once, without a word."""
        spool = f"{self.folder}/spool/{node}"
        daemon = int((self.folder / f"{node}.pid").read_text())
        doomed = {daemon}
        for pid, parent, environ in processes():
            if parent == daemon or (
                f"SLURMD_NODENAME={node}\0" in environ and spool.split("/spool")[0] in environ
            ):
                doomed.add(pid)
        for pid in doomed:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

    def stop(self) -> None:
        """Cancel everything, stop the daemons, kill whatever was left of the jobs."""
        self.run("scancel", "-u", "root", check=False)
        with contextlib.suppress(AssertionError):
            wait_for("jobs to end", lambda: not self.run("squeue", "-h", check=False), 20)
        for pidfile in [*self.folder.glob("*.pid")]:
            with contextlib.suppress(ProcessLookupError, ValueError):
                os.kill(int(pidfile.read_text()), signal.SIGTERM)
        if self._munged is not None:
            os.kill(self._munged, signal.SIGTERM)
        for pid, _, environ in processes():
            if f"SLURM_CONF={self.folder}/" in environ and pid != os.getpid():
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)


def processes():
    """(pid, parent's pid, environment with NUL separators) of every process that can be read."""
    for entry in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError, IndexError):
            parent = int((entry / "stat").read_text().rsplit(")", 1)[1].split()[1])
            yield int(entry.name), parent, (entry / "environ").read_text(errors="replace")


def start_munge() -> int | None:
    """munged, which authenticates SLURM's messages: its process id, None if one ran already."""
    if subprocess.run(["munge", "-n"], capture_output=True).returncode == 0:
        return None
    if not Path("/etc/munge/munge.key").exists():
        subprocess.run(["/usr/sbin/mungekey", "-c"], check=True)
        shutil.chown("/etc/munge/munge.key", "munge", "munge")
    subprocess.run(["install", "-d", "-o", "munge", "-g", "munge", "/run/munge"], check=True)
    subprocess.run(["runuser", "-u", "munge", "--", "/usr/sbin/munged"], check=True)
    wait_for("munged", lambda: subprocess.run(["munge", "-n"], capture_output=True).returncode == 0, 10)
    return int(Path("/run/munge/munged.pid").read_text())
