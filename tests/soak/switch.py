#!/usr/bin/env python3
"""A switch between network namespaces that holds every packet for a while.

    switch.py DELAY_MS NETWORK NAMESPACE...

This namespace is NETWORK.1, the first named one NETWORK.2, and so on; each gets one tun device and
a route to all. Prints `ready` when packets pass. Ends with its standard input; the devices go with
it. Needs root and Linux, and no kernel module for delays.
"""

import ctypes
import fcntl
import heapq
import os
import selectors
import struct
import subprocess
import sys
import time

TUNSETIFF = 0x400454CA
IFF_TUN, IFF_NO_PI = 0x0001, 0x1000
CLONE_NEWNET = 0x40000000
DEVICE = "souk0"
MTU = 1500
LIBC = ctypes.CDLL(None, use_errno=True)


def enter(path):
    """Makes the namespace at `path` this process's."""
    with open(path) as file:
        if LIBC.setns(file.fileno(), CLONE_NEWNET) != 0:
            raise OSError(ctypes.get_errno(), f"cannot enter {path}")


def device(address):
    """A tun device with this address in the current namespace; its packets come from the result."""
    tun = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK)
    fcntl.ioctl(tun, TUNSETIFF, struct.pack("16sH", DEVICE.encode(), IFF_TUN | IFF_NO_PI))
    for words in (
        ["addr", "add", f"{address}/24", "dev", DEVICE],
        ["link", "set", DEVICE, "mtu", str(MTU), "txqueuelen", "10000", "up"],
        ["link", "set", "lo", "up"],
    ):
        subprocess.run(["ip", *words], check=True)
    return tun


def main():
    delay, network, names = float(sys.argv[1]) / 1e3, sys.argv[2], sys.argv[3:]
    home = "/proc/self/ns/net"
    keep = os.open(home, os.O_RDONLY)
    devices = {}
    for number, name in enumerate([None, *names], start=1):
        if name:
            enter(f"/run/netns/{name}")
        address = f"{network}.{number}"
        devices[bytes(int(part) for part in address.split("."))] = device(address)
        enter(f"/proc/self/fd/{keep}")
    select = selectors.DefaultSelector()
    for tun in devices.values():
        select.register(tun, selectors.EVENT_READ)
    select.register(sys.stdin, selectors.EVENT_READ)
    print("ready", flush=True)
    held, count = [], 0
    while True:
        now = time.monotonic()
        while held and held[0][0] <= now:
            _, _, tun, packet = heapq.heappop(held)
            try:
                os.write(tun, packet)
            except OSError:
                # A full device loses packets, as wires do.
                pass
        wait = held[0][0] - now if held else None
        for key, _ in select.select(wait):
            if key.fileobj is sys.stdin:
                return
            # Some at a time, so that none waits for a busy sender.
            for _ in range(64):
                try:
                    packet = os.read(key.fd, MTU + 64)
                except BlockingIOError:
                    break
                to = devices.get(packet[16:20]) if packet[0] >> 4 == 4 else None
                if to is not None:
                    count += 1
                    heapq.heappush(held, (time.monotonic() + delay, count, to, packet))


if __name__ == "__main__":
    main()
