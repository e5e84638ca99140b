#!/usr/bin/env bash
# A track's title does not come back under its name: FFmpeg writes "title" of a stream into .mp4 and .mov and reads it as "name"; from
# Matroska it comes back as "title". A language by ISO 639-2's newer code ("deu") is kept in .mp4 and lost in .mov, the older one ("ger") is
# kept. Exits non-zero if that changes.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet av==18.1.0
cd "$folder"
"$folder/venv/bin/python" - <<'PYTHON'
import sys

import av

print("PyAV", av.__version__, "FFmpeg", av.ffmpeg_version_info)
found = {}
for suffix in ("mp4", "mov", "mkv"):
    for language in ("deu", "ger"):
        with av.open(f"a.{suffix}", "w") as out:
            stream = out.add_stream("mpeg4", rate=25)
            stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
            stream.metadata.update({"title": "Camera B", "language": language})
            frame = av.VideoFrame(64, 48, "yuv420p")
            frame.pts = 0
            for packet in [*stream.encode(frame), *stream.encode(None)]:
                out.mux(packet)
        with av.open(f"a.{suffix}") as file:
            tags = {key.lower(): value for key, value in file.streams.video[0].metadata.items()}
        title = next((key for key, value in tags.items() if value == "Camera B"), None)
        found[suffix, language] = title, tags.get("language")
        print(f"{suffix}: title comes back as {title}, language {language} as {tags.get('language')}")
expected = {("mp4", "deu"): ("name", "deu"), ("mp4", "ger"): ("name", "ger"), ("mov", "deu"): ("name", None), ("mov", "ger"): ("name", "ger"),
            ("mkv", "deu"): ("title", "deu"), ("mkv", "ger"): ("title", "ger")}
print("as it was" if found == expected else "not as it was")
sys.exit(found != expected)
PYTHON
