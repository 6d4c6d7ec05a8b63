"""Hosts in network namespaces: four servers, three clients, and a store that is 30 ms away.

    s1 s2 s3 s4   10.203.0.11 …  ┐                                              each link with a rate of its own, both ways
    c1 c2 c3      10.203.0.21 …  ┴─ lan ─ 10.203.0.254 hub 10.204.0.1 ─ 15 ms ─ 10.204.0.2 store
                                    island, a second switch, for hosts that are split off: they still reach the store

Names are unique by process, so several may be up. A guard takes everything down when the process ends, however it does.
"""

import contextlib
import os
import shutil
import socket
import subprocess
import sys

from lab.delayline import enter

SERVERS, CLIENTS = ("s1", "s2", "s3", "s4"), ("c1", "c2", "c3")
HUB, LINE, STORE = "10.203.0.254", "10.204.0.1", "10.204.0.2"
# What waits for its turn in a switch: at 1 Gbit/s, some 30 ms of it.
QUEUE_BYTES = 4 << 20
HERE = os.path.dirname(os.path.abspath(__file__))


def address_of(host):
    return STORE if host == "store" else "10.203.0." + {"s": "1", "c": "2"}[host[0]] + host[1:]


def mac_of(host):
    return f"02:fc:00:00:00:{address_of(host).rsplit('.', 1)[1]}"


def missing():
    """Why there can be no hosts here; `None` if there can."""
    tools = [tool for tool in ("ip", "tc") if shutil.which(tool) is None]
    if tools:
        return f"{' and '.join(tools)} (package iproute2) not found"
    if not os.access("/dev/net/tun", os.R_OK | os.W_OK):
        return "/dev/net/tun cannot be opened"
    try:
        with Hosts():
            return None
    except (HostsError, OSError) as error:
        return f"network namespaces cannot be made: {error}"


class HostsError(Exception):
    """Something could not be set up."""


class Hosts:
    """The hosts, while it is entered."""

    def __init__(self, rate="1gbit", delay_ms=15.0, line_mbit_per_s=2500.0):
        self.prefix = f"fclab{os.getpid()}-"
        self.rate_at_first, self.delay_ms, self.line_mbit_per_s = rate, delay_ms, line_mbit_per_s
        self.island = []

    def __enter__(self):
        self.home = os.open("/proc/self/ns/net", os.O_RDONLY)
        # It ends when its input does: with this process, at the latest.
        self.guard = subprocess.Popen([sys.executable, "-m", "lab.hosts", self.prefix], stdin=subprocess.PIPE, cwd=os.path.dirname(HERE),
                                      start_new_session=True)
        try:
            self.up()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_):
        self.guard.stdin.close()
        self.guard.wait()
        os.close(self.home)

    def name(self, host):
        return self.prefix + host

    def up(self):
        hosts = SERVERS + CLIENTS
        run("ip", "-batch", "-", text="".join(f"netns add {self.name(host)}\n" for host in (*hosts, "hub", "store")))
        self.ip("hub", "link set lo up", *(
            line for switch in ("lan", "island") for line in (
                f"link add {switch} type bridge", f"link set {switch} address 02:fc:00:00:00:fe mtu 9000 up")),
            f"address add {HUB}/24 dev lan", f"address add {HUB}/32 dev island")
        with self.inside("hub"), open("/proc/sys/net/ipv4/ip_forward", "w") as forward:
            forward.write("1")
        for host in hosts:
            self.ip("hub", f"link add {host} mtu 9000 type veth peer name eth0 netns {self.name(host)}", f"link set {host} master lan up")
            others = [(address_of(other), mac_of(other)) for other in hosts if other != host] + [(HUB, "02:fc:00:00:00:fe")]
            self.ip(host, "link set lo up", f"link set eth0 address {mac_of(host)} mtu 9000 up", f"address add {address_of(host)}/24 dev eth0",
                    f"route add default via {HUB}",
                    # Who is cut off is not known to be: nobody says that there is no such host.
                    *(f"neighbour add {address} lladdr {mac} dev eth0 nud permanent" for address, mac in others))
            for of, device in ((host, "eth0"), ("hub", host)):
                self.tc(of, f"qdisc add dev {device} root handle 1: htb default 1")
                self.tc(of, self.shaped(device, self.rate_at_first), f"qdisc add dev {device} parent 1:1 handle 10: bfifo limit {QUEUE_BYTES}")
        # In the hub's namespace, so that it goes with it.
        line = self.popen("hub", [sys.executable, os.path.join(HERE, "delayline.py"), self.name("hub"), LINE, self.name("store"), STORE,
                                  str(self.delay_ms), str(self.line_mbit_per_s)], stdout=subprocess.PIPE)
        if line.stdout.readline() != b"up\n":
            raise HostsError("the delay line to the store does not come up")
        self.ip("store", "link set lo up", f"route add default via {LINE}")

    def ip(self, host, *lines):
        run("ip", "-netns", self.name(host), "-batch", "-", text="\n".join(lines))

    def tc(self, host, *lines):
        run("tc", "-netns", self.name(host), "-batch", "-", text="\n".join(lines))

    @staticmethod
    def shaped(device, rate):
        return f"class replace dev {device} parent 1: classid 1:1 htb rate {rate} burst 256kb cburst 256kb quantum 60000"

    def rate(self, host, rate):
        """What a host's link lets through, both ways, such as `100mbit`."""
        self.tc(host, self.shaped("eth0", rate))
        self.tc("hub", self.shaped(host, rate))

    def cut(self, host):
        """Pulls a host's cable."""
        self.ip("hub", f"link set {host} down")

    def plug(self, host):
        """Puts it back."""
        self.ip("hub", f"link set {host} up")

    def split(self, *hosts):
        """Hosts that reach each other and the store, but none of the others. What is sent there is lost without a word."""
        self.ip("hub", *(line for host in hosts for line in (f"link set {host} master island", f"route add {address_of(host)}/32 dev island")))
        self.island += hosts

    def heal(self):
        """Ends the split."""
        self.ip("hub", *(line for host in self.island for line in (f"link set {host} master lan", f"route del {address_of(host)}/32 dev island")))
        self.island = []

    def popen(self, host, command, **options):
        """A process on a host; its number is the command's own."""
        return subprocess.Popen(["ip", "netns", "exec", self.name(host), *map(str, command)], **options)

    def run(self, host, command, **options):
        done = subprocess.run(["ip", "netns", "exec", self.name(host), *map(str, command)], capture_output=True, text=True, **options)
        if done.returncode:
            raise HostsError(f"{command[0]} on {host}: {done.stderr.strip()}")
        return done.stdout

    def http(self, host, port, path, timeout=5.0):
        """The body of a page of a host, asked from there."""
        with self.inside(host):
            connection = socket.create_connection((address_of(host), port), timeout)
        with connection, connection.makefile("rwb") as stream:
            stream.write(f"GET {path} HTTP/1.0\r\nHost: {address_of(host)}:{port}\r\n\r\n".encode())
            stream.flush()
            head, _, body = stream.read().partition(b"\r\n\r\n")
        if b" 200 " not in head.split(b"\r\n")[0] + b" ":
            raise OSError(f"{path} of {host}: {head.split(chr(13).encode())[0].decode()}")
        return body.decode()

    @contextlib.contextmanager
    def inside(self, host):
        """What this thread opens belongs to a host."""
        enter(self.name(host))
        try:
            yield
        finally:
            enter(self.home)


def run(*command, text=None):
    done = subprocess.run(command, input=text, capture_output=True, text=True)
    if done.returncode:
        raise HostsError(f"{' '.join(command)}: {done.stderr.strip()}")
    return done.stdout


def down(prefix):
    for line in run("ip", "netns", "list").splitlines():
        name = line.split()[0]
        if name.startswith(prefix):
            for pid in run("ip", "netns", "pids", name).split():
                with contextlib.suppress(ProcessLookupError):
                    os.kill(int(pid), 9)
            run("ip", "netns", "delete", name)


if __name__ == "__main__":
    sys.stdin.read()
    down(sys.argv[1])
