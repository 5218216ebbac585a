"""TensorBoard's event files, written from lines of metrics.jsonl.

Only the messages and the checksum are tensorboardX's: the thread of its writer ends on the first
full disk, and training would then wait for it forever.
"""

import os
import socket
import struct
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from tensorboardX.proto.event_pb2 import Event, SessionLog
from tensorboardX.proto.summary_pb2 import Summary
from tensorboardX.record_writer import masked_crc32c

from data_pipeline.files import write_atomically

_PREFIX = "events.out.tfevents."


def encode(line: Mapping[str, Any]) -> bytes:
    """Returns a line of metrics as a record: an event with each number in the line."""
    values = [
        Summary.Value(tag=name, simple_value=value)
        for name, value in line.items()
        if isinstance(value, int | float) and name not in ("step", "time")
    ]
    summary = Summary(value=values)
    return _record(Event(wall_time=line["time"], step=line["step"], summary=summary))


def _record(event: Event) -> bytes:
    # TFRecord's frame: length, checksum, data, checksum.
    data = event.SerializeToString()
    header = struct.pack("<Q", len(data))
    checksums = [struct.pack("<I", masked_crc32c(part)) for part in (header, data)]
    return header + checksums[0] + data + checksums[1]


def rewrite(folder: Path, lines: Iterable[Mapping[str, Any]]) -> Path:
    """Replaces the event files of `folder` by one that holds `lines`; returns its path.

    A process killed in between leaves both; TensorBoard reads the new one last (by its name), and
    its START event discards what was read before.
    """
    folder.mkdir(parents=True, exist_ok=True)
    older = [file for file in folder.iterdir() if _PREFIX in file.name]  # incomplete ones, too
    # Names sort in the order of the starts, even within one second.
    path = folder / f"{_PREFIX}{time.time_ns():020d}.{socket.gethostname()}.{os.getpid()}"
    now = time.time()
    start = [
        Event(wall_time=now, file_version="brain.Event:2"),
        Event(wall_time=now, step=0, session_log=SessionLog(status=SessionLog.START)),
    ]
    write_atomically(path, b"".join([*map(_record, start), *map(encode, lines)]))
    for file in older:
        file.unlink(missing_ok=True)
    return path
