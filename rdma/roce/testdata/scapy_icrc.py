#!/usr/bin/python3
"""Reads IP packets with a RoCEv2 packet inside, one a line in hexadecimal, and writes
for each the ICRC that it should carry, the four bytes in wire order.

IPv4: scapy.contrib.roce computes it. scapy has none for IPv6: there it is zlib.crc32
over the headers that scapy parsed and built again, masked here.
"""
import struct
import sys
import zlib

from scapy.all import IP, UDP, IPv6, Raw, raw
from scapy.contrib.roce import BTH


def icrc6(p):
    ip, udp, bth = p.copy(), p[UDP].copy(), p[BTH].copy()
    ip.tc, ip.fl, ip.hlim = 0xFF, 0xFFFFF, 0xFF
    udp.chksum = 0xFFFF
    bth.fecn, bth.becn, bth.resv6 = 1, 1, 0x3F
    body = bth.self_build()[:12] + raw(bth.payload)
    udp.remove_payload()
    ip.remove_payload()
    return struct.pack("<I", zlib.crc32(b"\xff" * 8 + raw(ip) + raw(udp) + body))


for line in sys.stdin:
    b = bytes.fromhex(line)
    if b[0] >> 4 == 4:
        p = IP(b)
        print(p[BTH].compute_icrc(b"").hex())
    else:
        print(icrc6(IPv6(b)).hex())
