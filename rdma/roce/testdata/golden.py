#!/usr/bin/python3
"""Writes golden.json: RoCEv2 packets whose ICRC was computed independently of the Go code.

IPv4 packets are built by scapy.contrib.roce, ICRC included. scapy does not compute the
ICRC for IPv6: there it is zlib.crc32 over the bytes that scapy built, masked here.

usage: golden.py > golden.json      (Debian: python3-scapy)
"""
import json
import struct
import zlib

from scapy.all import IP, UDP, IPv6, Raw, raw
from scapy.contrib.roce import AETH, BTH

OPS = [
    # name, opcode, pad, ackreq, extension headers, payload and pad
    ("send_first_256", 0x00, 0, 0, b"", bytes(range(256))),
    ("send_middle_1024", 0x01, 0, 0, b"", bytes(i * 7 & 0xFF for i in range(1024))),
    ("send_last_5", 0x02, 3, 1, b"", b"hello\0\0\0"),
    ("send_last_imm_128", 0x03, 0, 1, struct.pack("!I", 0xDEADBEEF), bytes(128)),
    ("send_only_0", 0x04, 0, 1, b"", b""),
    ("send_only_128", 0x04, 0, 1, b"", bytes(255 - i for i in range(128))),
    ("send_only_4096", 0x04, 0, 1, b"", bytes(i * i & 0xFF for i in range(4096))),
    ("send_only_imm_1", 0x05, 3, 1, struct.pack("!I", 1), b"x\0\0\0"),
    ("write_only_64", 0x0A, 0, 1, struct.pack("!QII", 0x0102030405060708, 0x11223344, 64), bytes(range(64))),
    ("write_only_imm_2", 0x0B, 2, 1, struct.pack("!QII", 1 << 63, 7, 2) + struct.pack("!I", 0x01020304), b"ab\0\0"),
    ("read_request", 0x0C, 0, 1, struct.pack("!QII", 0xFFFF888800001000, 0xCAFE, 1 << 20), b""),
    ("read_response_only_16", 0x10, 0, 0, struct.pack("!I", 0x1F000009), bytes(16)),
    ("atomic_ack", 0x12, 0, 0, struct.pack("!IQ", 0x1F00000A, 0x1122334455667788), b""),
    ("compare_swap", 0x13, 0, 1, struct.pack("!QIQQ", 0x1000, 0xBEEF, 5, 6), b""),
    ("fetch_add", 0x14, 0, 1, struct.pack("!QIQQ", 0x2000, 0xBEEF, 1, 0), b""),
    ("write_first_512", 0x06, 0, 0, struct.pack("!QII", 0x7F0000001234, 0xFEEDFACE, 1027), bytes(i * 3 & 0xFF for i in range(512))),
    ("write_middle_512", 0x07, 0, 0, b"", bytes(i * 5 & 0xFF for i in range(512))),
    ("write_last_3", 0x08, 1, 1, b"", b"end\0"),
    ("write_last_imm_7", 0x09, 1, 1, struct.pack("!I", 0x80000001), b"endless\0"),
    ("read_response_first_256", 0x0D, 0, 0, struct.pack("!I", 0x1F00000B), bytes(i ^ 0xA5 for i in range(256))),
    ("read_response_middle_256", 0x0E, 0, 0, b"", bytes(256)),
    ("read_response_last_2", 0x0F, 2, 0, struct.pack("!I", 0x1FFFFFFF), b"ok\0\0"),
]
ACKS = [("ack", 0x1F), ("nak_sequence", 0x60), ("nak_invalid", 0x61), ("rnr", 0x2E), ("nak_access", 0x62), ("nak_operational", 0x63)]


def transport(op, pad, ackreq, psn):
    return BTH(opcode=op, migreq=1, padcount=pad, dqpn=0xABCDE0 + (op & 15), ackreq=ackreq, psn=psn)


def v4(body, ident, tos):
    ip = IP(src="192.0.2.1", dst="198.51.100.7", flags="DF", id=ident, tos=tos, ttl=61)
    return raw(ip / UDP(sport=49321, dport=4791, chksum=0) / body)


def v6(body):
    ip = IPv6(src="2001:db8::1", dst="2001:db8:1::2", tc=0x1A, fl=0x12345, hlim=63)
    body = body.copy()
    body.icrc = 0
    # the ICRC's four bytes are in place (as zeros), so every length is final
    p = bytearray(raw(ip / UDP(sport=51000, dport=4791, chksum=0x1234) / body))
    m = bytearray(p[:-4])
    m[0] |= 0x0F                      # traffic class, high half
    m[1:4] = b"\xff\xff\xff"          # traffic class, low half; flow label
    m[7] = 0xFF                       # hop limit
    m[40 + 6 : 40 + 8] = b"\xff\xff"  # UDP checksum
    m[40 + 8 + 4] = 0xFF              # BTH: FECN, BECN, reserved
    p[-4:] = struct.pack("<I", zlib.crc32(b"\xff" * 8 + bytes(m)))
    return bytes(p)


def main():
    out = []

    def add(name, op, psn, body, **extra):
        for ver, p in ((4, v4(body, 0, 0)), (6, v6(body))):
            out.append({"name": f"{name}/v{ver}", "opcode": op, "psn": psn, "ip": p.hex(), **extra})

    for i, (name, op, pad, ackreq, ext, payload) in enumerate(OPS):
        psn = (0xFFFFFA + i) & 0xFFFFFF
        body = transport(op, pad, ackreq, psn)
        if ext + payload:
            body = body / Raw(ext + payload)
        add(name, op, psn, body, pad=pad, payload=len(payload) - pad)
    for i, (name, syndrome) in enumerate(ACKS):
        body = transport(0x11, 0, 0, 100 + i) / AETH(syndrome=syndrome, msn=0x010203 + i)
        add(name, 0x11, 100 + i, body, pad=0, payload=0)
    # what a router or the sender's kernel changes: identification is covered, TOS and TTL are not
    body = transport(0x04, 0, 1, 77) / Raw(bytes(32))
    out.append({"name": "identified/v4", "opcode": 4, "psn": 77, "ip": v4(body, 0x4321, 0xB9).hex(), "pad": 0, "payload": 32})

    print("[\n" + ",\n".join(json.dumps(x) for x in out) + "\n]")


main()
