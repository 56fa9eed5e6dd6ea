"""The health check that a kubelet sends to a gRPC port, over HTTP/2 by hand: a client of gRPC's own
would be the library under test.

RFC 9113 (frames), RFC 7541 6.2.2 (literal header fields), gRPC over HTTP/2, grpc.health.v1.
"""

import socket
import struct

SERVING = 1
DATA, HEADERS, RST_STREAM, SETTINGS, PING, GOAWAY = 0, 1, 3, 4, 6, 7
END_STREAM = ACK = 0x1
END_HEADERS = 0x4


def _frame(kind, flags, stream, payload):
    return struct.pack(">I", len(payload))[1:] + bytes([kind, flags]) + struct.pack(
        ">I", stream) + payload


def _literal(name, value):
    """Both shorter than 127 bytes, so that a length is one byte."""
    return b"\0" + bytes([len(name)]) + name.encode() + bytes([len(value)]) + value.encode()


def _request(service, method="Check", timeout="5S"):
    headers = b"".join(_literal(name, value) for name, value in [
        (":method", "POST"), (":scheme", "http"), (":path", f"/grpc.health.v1.Health/{method}"),
        (":authority", "localhost"), ("te", "trailers"), ("content-type", "application/grpc"),
        ("grpc-timeout", timeout),
    ])
    message = b"\x0a" + bytes([len(service)]) + service.encode() if service else b""
    return (
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + _frame(SETTINGS, 0, 0, b"")
        + _frame(HEADERS, END_HEADERS, 1, headers)
        + _frame(DATA, END_STREAM, 1, b"\0" + struct.pack(">I", len(message)) + message)
    )


def _read(stream, num_bytes):
    data = stream.read(num_bytes)
    if len(data) < num_bytes:
        raise ConnectionError("the connection ended")
    return data


def watch(port):
    """A connection on which a call is under way until it is closed."""
    connection = socket.create_connection(("127.0.0.1", port), timeout=60)
    connection.sendall(_request("", "Watch", "1H"))
    with connection.makefile("rb") as stream:
        kind = SETTINGS
        while kind != DATA:  # the first status
            head = _read(stream, 9)
            kind = head[3]
            _read(stream, int.from_bytes(head[:3], "big"))
    return connection


def health(port, service="", timeout_s=5, host="127.0.0.1"):
    """The ServingStatus, or None when the service is unknown or the call failed."""
    body = b""
    with socket.create_connection((host, port), timeout=timeout_s) as connection:
        connection.sendall(_request(service))
        with connection.makefile("rb") as stream:
            ended = False
            while not ended:
                head = _read(stream, 9)
                length = int.from_bytes(head[:3], "big")
                kind, flags = head[3], head[4]
                payload = _read(stream, length)
                if kind in (SETTINGS, PING) and not flags & ACK:
                    answer = payload if kind == PING else b""
                    connection.sendall(_frame(kind, ACK, 0, answer))
                elif kind == DATA:
                    body += payload
                ended = kind in (RST_STREAM, GOAWAY) or (
                    kind in (DATA, HEADERS) and bool(flags & END_STREAM))
    if len(body) < 5:
        return None
    message = body[5:]
    return message[1] if message[:1] == b"\x08" else 0
