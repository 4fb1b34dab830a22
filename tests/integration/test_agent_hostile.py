"""Garbage, truncation and floods against the real agent: it ends, with everything that it started, and nothing else."""

import shutil
import socket
import struct
import subprocess
from contextlib import suppress
from pathlib import Path

import pytest

from corral.sandboxes.link import Setup, protocol
from corral.sandboxes.model import ExecRequest
from corral.testing.bare_agent import start_agent

AGENT_SOURCE = Path(__file__).parents[2] / "native" / "agent"
FUZZER = next((name for name in ("clang", "clang-19", "clang-14") if shutil.which(name)), "clang")
SETUP = protocol.encode_frame(protocol.T_SETUP, 1, protocol.encode_setup(Setup()))
EXEC = protocol.encode_exec(ExecRequest(argv=("/bin/sleep", "100")), stdin=True)


def answer_to(data: bytes, *, then_close: bool = False) -> tuple[bytes, int]:
    """What the agent says to ``data``, and how it ends when it ends by itself."""
    stream, agent = start_agent()
    with stream:
        stream.settimeout(20)
        heard = b""
        with suppress(ConnectionResetError, BrokenPipeError):  # it left without reading the rest: an end too
            stream.sendall(data)
            if then_close:
                stream.shutdown(socket.SHUT_WR)
            while piece := stream.recv(65_536):
                heard += piece
    return heard, agent.wait(20)


@pytest.mark.parametrize(
    "data",
    [
        b"GET / HTTP/1.1\r\nHost: sandbox\r\n\r\n",
        b"\xff" * 64,
        b"\0" * 64,
        protocol.encode_frame(protocol.T_EXEC, 1, EXEC),
        protocol.encode_frame(protocol.T_SETUP, 1, b"short"),
        SETUP + SETUP,
        SETUP + protocol.encode_frame(protocol.T_EXEC, 2, EXEC[:-3]),
        SETUP + protocol.encode_frame(protocol.T_EXEC, 2, EXEC + b"x"),
        SETUP + protocol.encode_frame(protocol.T_EXEC, 2, EXEC) * 2,
        SETUP + protocol.encode_frame(protocol.T_EXEC, 2, EXEC.replace(b"/bin/sleep\0", b"/bin/sle\0p\0")),
        SETUP
        + protocol.encode_frame(protocol.T_EXEC, 2, EXEC)
        + protocol.encode_frame(protocol.T_CREDIT, 2, b"\xff" * 4),
        SETUP + protocol.encode_frame(protocol.T_EXEC, 2, EXEC) + protocol.encode_frame(protocol.T_DATA, 2, b"x"),
        SETUP
        + protocol.encode_frame(protocol.T_EXEC, 2, EXEC)
        + protocol.encode_frame(protocol.T_STDIN, 2, b"x" * 65_536) * 9,
        SETUP + struct.pack("<IIB", protocol.FRAME_PAYLOAD_MAX + 1, 2, protocol.T_EXEC),
        SETUP + struct.pack("<IIB", protocol.DATA_BYTES_MAX + 1, 2, protocol.T_STDIN),
        SETUP + protocol.encode_frame(protocol.T_READY, 2),
        SETUP + protocol.encode_frame(protocol.T_PING, 0),
    ],
)
def test_garbage_ends_the_agent_without_a_crash(data: bytes) -> None:
    _, status = answer_to(data)

    assert status == 0


@pytest.mark.parametrize("cut", [1, 8, 9, 20, len(SETUP) - 1])
def test_a_truncated_stream_ends_the_agent(cut: int) -> None:
    assert answer_to(SETUP[:cut], then_close=True) == (b"", 0)


def test_frames_for_streams_that_ended_are_ignored() -> None:
    late = b"".join(
        protocol.encode_frame(kind, 77, b"\0\0\0\0") for kind in (protocol.T_STDIN, protocol.T_KILL, protocol.T_CREDIT)
    )
    ping = protocol.encode_frame(protocol.T_PING, 5)

    heard, status = answer_to(SETUP + late + ping, then_close=True)

    frames = list(protocol.FrameDecoder().feed(heard))
    assert [frame.type for frame in frames] == [protocol.T_READY, protocol.T_PONG]
    assert status == 0


def test_another_version_is_refused_in_words() -> None:
    payload = struct.pack("<I", 999) + protocol.encode_setup(Setup())[4:]

    heard, _ = answer_to(protocol.encode_frame(protocol.T_SETUP, 1, payload))

    (frame,) = protocol.FrameDecoder().feed(heard)
    assert frame.type == protocol.T_SETUP_FAILED
    assert "999" in protocol.decode_sentence(frame.payload)


def test_the_decoders_survive_the_fuzzer(tmp_path: Path) -> None:
    if shutil.which(FUZZER) is None:
        pytest.skip(f"{FUZZER} is not installed: apt-get install {FUZZER}")
    subprocess.run(["make", "-C", str(AGENT_SOURCE), "build/fuzz_decode", f"FUZZER={FUZZER}"], check=True, timeout=60)
    (tmp_path / "setup").write_bytes(SETUP)
    (tmp_path / "exec").write_bytes(protocol.encode_frame(protocol.T_EXEC, 2, EXEC))

    done = subprocess.run(
        [
            AGENT_SOURCE / "build" / "fuzz_decode",
            "-max_total_time=20",
            "-seed=1",
            f"-artifact_prefix={tmp_path}/",
            tmp_path,
        ],
        check=False,
        capture_output=True,
        text=True,
        timeout=90,
    )

    assert done.returncode == 0, done.stderr[-3000:]
