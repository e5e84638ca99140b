#!/usr/bin/env bash
# A stream's language in a QuickTime file: FFmpeg writes it as a number of Apple's old list, which it searches for the three letters given.
# Expected: both lists of ISO 639-2 (deu and ger, fra and fre) are known, or the language is kept as it is in .mp4. Seen: of some languages
# only the one name is kept (ger, not deu), of others only the other one (fra, not fre), Swedish only as "sve", Croatian only as "hr ";
# what is not known is left away without a word. Exits with 1 when that changes.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check av==18.1.0
cd "$folder"
"$folder/venv/bin/python" - <<'PYTHON'
import sys
import av
print("PyAV", av.__version__, "FFmpeg", av.ffmpeg_version_info)


def kept(language, suffix):
    with av.open(f"in.{suffix}", "w") as out:
        stream = out.add_stream("mpeg4", rate=25)
        stream.width = stream.height = 32
        stream.metadata["language"] = language
        frame = av.VideoFrame(32, 32, "yuv420p")
        frame.pts = 0
        out.mux(stream.encode(frame))
        out.mux(stream.encode(None))
    with av.open(f"in.{suffix}") as file:
        return file.streams.video[0].metadata.get("language")


expected = {"eng": "eng", "jpn": "jpn", "deu": None, "ger": "ger", "fra": "fra", "fre": None, "ces": "ces", "cze": None, "nld": None, "dut": "dut",
            "swe": None, "sve": "sve", "hrv": None, "hr ": "hr "}
found = {language: kept(language, "mov") for language in expected}
for language, value in found.items():
    print(f"{language!r}: .mov {value!r}, .mp4 {kept(language, 'mp4')!r}")
sys.exit(found != expected or kept("deu", "mp4") != "deu" or kept("swe", "mp4") != "swe")
PYTHON
