"""Put the encoded pictures together with the sound, and with what else the clip's file holds."""
from __future__ import annotations

import contextlib
import heapq
import os
from collections.abc import Iterator, Sequence
from fractions import Fraction
from pathlib import Path

import av

from .clip import MediaError, VideoClip
from .container import is_telemetry, open_container, track_tags
from .encoding import CODECS, MUXERS, Encoding, configure, no_room
from .packets import with_decoding_times
from .sound import Timed, add_converted, converted, copied, loss_of, name_of, ways

# tags for which .mp4 and .mov have a place of their own, where every program looks; others need Apple's, which takes all
_OWN_PLACE = {"title", "artist", "album", "date", "comment", "copyright", "genre", "location", "creation_time"}
_OWN_PLACES = {"mov": _OWN_PLACE | {"make", "model"},
               "mp4": _OWN_PLACE | {"album_artist", "composer", "grouping", "lyrics", "description", "synopsis", "show", "episode_id",
                                    "network", "keywords"}}
# names of languages (ISO 639) that FFmpeg does not know when it writes .mov, and those by which it does: of either list, or its own
_OF_MOV = dict(pair.split("/") for pair in "sqi/alb hye/arm zho/chi nld/dut kat/geo deu/ger ell/gre isl/ice mkd/mac msa/may fas/per "
               "cym/wel cze/ces fre/fra rum/ron slo/slk swe/sve".split()) | {"hrv": "hr ", "srp": "sr "}


def _tags(track: tuple[tuple[str, str], ...], muxer: str) -> dict[str, str]:
    """A stream's tags as the container's writer understands them."""
    return {key: _OF_MOV.get(value, value) if key == "language" and muxer == "mov" else value for key, value in track}


def join(packet_files: Sequence[Path], encoding: Encoding, target: Path, clip: VideoClip | None, *, audio: bool = True) -> list[str]:
    """Mux the packets of all segments in these files, and the sound and subtitles of `clip`, into `target`. Nothing is encoded again.

    Returns notes on what could not be carried over. Raises MediaError.
    """
    notes: list[str] = []
    muxer = MUXERS[target.suffix.lower()]
    options = {"movflags": "+faststart"} if muxer in ("mp4", "mov") else {}
    if options and clip and any(key.lower().partition("-")[0] not in _OWN_PLACES[muxer] for key, _ in clip.metadata):
        options["movflags"] += "+use_metadata_tags"
    with contextlib.ExitStack() as stack:
        output = stack.enter_context(contextlib.closing(av.open(os.path.abspath(target), "w", format=muxer, options=options)))
        stream = output.add_stream(CODECS[encoding.codec].encoder, rate=encoding.rate)
        configure(stream.codec_context, encoding)
        stream.time_base = encoding.time_base
        if encoding.codec == "hevc" and muxer != "matroska":
            stream.codec_context.codec_tag = "hvc1"            # what Apple's players ask for
        sources = [_video_packets(packet_files, encoding, stream)]
        if clip and clip.metadata:
            output.metadata.update(dict(clip.metadata))
        if clip:
            stream.metadata.update(_tags(clip.track, muxer))
        if clip and clip.timecode:
            stream.metadata["timecode"] = clip.timecode        # in .mov and .mp4 this makes a track of it
        if clip and clip.chapters:
            output.set_chapters([{"id": i, "start": max(0, round(1000 * (start - clip.shift))),
                                  "end": max(0, round(1000 * (end - clip.shift))), "time_base": Fraction(1, 1000),
                                  "metadata": {"title": title} if title else {}} for i, (start, end, title) in enumerate(clip.chapters)])
        if clip and audio and (clip.sound or clip.attached or clip.telemetry):
            source = stack.enter_context(contextlib.closing(open_container(clip.path)))
            copies, way = {}, ways(clip.path, muxer)
            for other in source.streams:
                if other.type not in ("audio", "subtitle") and not (is_telemetry(other) and muxer != "matroska"):
                    continue
                if other.index not in way:
                    notes.append(f"the {other.type} stream {name_of(other)} cannot be stored in {target.suffix} and was left out")
                    continue
                if codec := way[other.index]:
                    copy = add_converted(output, other, codec)
                    sources.append(converted(clip, other.index, copy))
                    notes.append(f"its sound ({name_of(other)}) is stored as {codec}, which loses {loss_of(other, codec)}")
                else:
                    copy = copies[other.index] = output.add_stream_from_template(other)
                copy.metadata.update(_tags(track_tags(other), muxer))
                copy.disposition = getattr(other.disposition, "value", other.disposition)
            if muxer == "matroska" and hasattr(output, "add_attachment"):
                for other in (s for s in source.streams if s.type == "attachment"):
                    output.add_attachment(other.metadata.get("filename", "attached"), other.mimetype or "application/octet-stream",
                                          other.data)
            elif muxer == "matroska" and clip.attached:
                notes.append("attached files were left out; PyAV 16 or later takes them over")
            if copies:
                sources.append(copied(source, copies, clip))
        try:
            output.start_encoding()
            for _, _, packet in heapq.merge(*sources, key=lambda item: item[0]):
                output.mux_one(packet)
        except (av.FFmpegError, ValueError) as error:
            if len(sources) == 1 or no_room(error):
                raise
            raise MediaError(f"the sound or the subtitles of {clip.path} cannot be put into a {target.suffix} file ({error}); the pictures "
                             "are finished and kept: run again with --resume --no-audio") from error
    return notes


def _video_packets(packet_files: Sequence[Path], encoding: Encoding, stream) -> Iterator[Timed]:
    one = max(1, round(1 / (encoding.rate * encoding.time_base)))
    for item, dts in with_decoding_times(packet_files, one):
        packet = av.Packet(item.data)
        packet.pts, packet.dts, packet.duration, packet.time_base = item.pts, dts, item.duration, encoding.time_base
        packet.is_keyframe, packet.stream = item.key, stream
        yield dts * encoding.time_base, 0, packet
