"""Put the encoded pictures together with what else the clip's file holds. Sound and subtitles are copied where the container takes them;
PCM, and what no container here takes, is converted without loss, else said.
"""
from __future__ import annotations

import contextlib
import heapq
import io
import os
from collections.abc import Iterator, Sequence
from fractions import Fraction
from itertools import chain, islice
from pathlib import Path

import av

from .clip import MediaError, VideoClip
from .container import TRIED, Joins, is_telemetry, name_of, open_container, packets_of, track_tags
from .encoding import CODECS, CONTAINERS, MUXERS, Encoding, OutputOptions, configure, no_room, with_decoding_times

# tags for which .mp4 and .mov have a place of their own, where every program looks; others need Apple's, which takes all
_OWN_PLACE = {"title", "artist", "album", "date", "comment", "copyright", "genre", "location", "creation_time"}
_OWN_PLACES = {"mov": _OWN_PLACE | {"make", "model"},
               "mp4": _OWN_PLACE | {"album_artist", "composer", "grouping", "lyrics", "description", "synopsis", "show", "episode_id",
                                    "network", "keywords"}}
# names of languages (ISO 639) that FFmpeg does not know when it writes .mov, and those by which it does: of either list, or its own
_OF_MOV = dict(pair.split("/") for pair in "sqi/alb hye/arm zho/chi nld/dut kat/geo deu/ger ell/gre isl/ice mkd/mac msa/may fas/per "
               "cym/wel cze/ces fre/fra rum/ron slo/slk swe/sve".split()) | {"hrv": "hr ", "srp": "sr "}
_PCM = {"u8": "pcm_u8", "s16": "pcm_s16le", "s32": "pcm_s32le", "flt": "pcm_f32le", "dbl": "pcm_f64le"}
Timed = tuple[Fraction, av.Packet]                             # with seconds


def _tags(track: tuple[tuple[str, str], ...], muxer: str) -> dict[str, str]:
    """A stream's tags as the container's writer understands them."""
    return {key: _OF_MOV.get(value, value) if key == "language" and muxer == "mov" else value for key, value in track}


def join(packet_files: Sequence[Path], encoding: Encoding, target: Path, *, audio: bool = True) -> list[str]:
    """Mux the packets of all segments in these files, and the sound and subtitles of their clip, into `target`. Nothing is encoded again.

    Returns notes on what could not be carried over. Raises MediaError.
    """
    notes: list[str] = []
    clip, muxer = encoding.clip, MUXERS[target.suffix.lower()]
    options = {"movflags": "+faststart"} if muxer in ("mp4", "mov") else {}
    if options and any(key.lower().partition("-")[0] not in _OWN_PLACES[muxer] for key, _ in clip.metadata):
        options["movflags"] += "+use_metadata_tags"
    with contextlib.ExitStack() as stack:
        output = stack.enter_context(contextlib.closing(av.open(os.path.abspath(target), "w", format=muxer, options=options)))
        stream = output.add_stream(CODECS[encoding.codec].encoder, rate=clip.rate)
        configure(stream.codec_context, encoding)
        stream.time_base = clip.time_base
        if encoding.codec == "hevc" and muxer != "matroska":
            stream.codec_context.codec_tag = "hvc1"            # what Apple's players ask for
        sources = [_video_packets(packet_files, encoding, stream)]
        output.metadata.update(dict(clip.metadata))
        stream.metadata.update(_tags(clip.track, muxer))
        if clip.timecode:
            stream.metadata["timecode"] = clip.timecode        # in .mov and .mp4 this makes a track of it
        if clip.chapters:
            output.set_chapters([{"id": i, "start": max(0, round(1000 * (start - clip.shift))),
                                  "end": max(0, round(1000 * (end - clip.shift))), "time_base": Fraction(1, 1000),
                                  "metadata": {"title": title} if title else {}} for i, (start, end, title) in enumerate(clip.chapters)])
        if audio and (clip.sound or clip.attached or clip.telemetry):
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
                    rounded = other.codec_context.format.name.startswith(("flt", "dbl")) and codec in ("flac", "pcm_s24le")
                    heard = " that can be heard" * rounded
                    notes.append(f"its sound ({name_of(other)}) is stored as {codec}, which loses nothing{heard}")
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
            for _, packet in heapq.merge(*sources, key=lambda item: item[0]):
                output.mux_one(packet)
        except (av.FFmpegError, ValueError) as error:
            if len(sources) == 1 or no_room(error):
                raise
            raise MediaError(f"the sound or the subtitles of {clip.path} cannot be put into a {target.suffix} file ({error}); the pictures "
                             "are finished and kept: run again with --resume --no-audio") from error
    return notes


def _video_packets(packet_files: Sequence[Path], encoding: Encoding, stream) -> Iterator[Timed]:
    tick = encoding.clip.time_base
    one = max(1, round(1 / (encoding.clip.rate * tick)))
    for item, dts in with_decoding_times(packet_files, one):
        packet = av.Packet(item.data)
        packet.pts, packet.dts, packet.duration, packet.time_base = item.pts, dts, item.duration, tick
        packet.is_keyframe, packet.stream = item.key, stream
        yield dts * tick, packet


def ways(path: Path, muxer: str) -> dict[int, str]:
    """How the container takes each stream of sound, subtitles and data: "" copied, or the codec it is converted to. What it refuses lacks.

    The first packets of each are put into one in memory, since some containers refuse only then what they list as supported.
    """
    with contextlib.closing(open_container(path)) as source:
        streams = {s.index: s for s in source.streams if s.type in ("audio", "subtitle") and s.codec_context or is_telemetry(s)}
        first: dict[int, list[av.Packet]] = {index: [] for index in streams}
        with contextlib.suppress(av.FFmpegError):
            for packet in islice(packets_of(source, list(streams.values())), TRIED if streams else 0):
                if packet.size and packet.dts is not None and len(first[packet.stream_index]) < 3:
                    first[packet.stream_index].append(packet)
                if all(len(packets) == 3 for packets in first.values()):
                    break
        found = {index: "" for index, stream in streams.items() if _fits(stream, first[index], muxer)}
        anywhere = {index for index in streams if any(_fits(streams[index], first[index], other) for other in {*MUXERS.values()} - {muxer}
                                                      if index not in found)}
        better = {index: codec for index, stream in streams.items() if (codec := _lossless(stream, muxer, index in anywhere))
                  and (index not in found or (muxer, codec) == ("mp4", "flac") and stream.codec_context.name.startswith("pcm_"))}
        return found | better


def _fits(stream, packets: Sequence[av.Packet], muxer: str) -> bool:
    try:
        trial = av.open(io.BytesIO(), "w", format=muxer)
        copy = trial.add_stream_from_template(stream)
        trial.start_encoding()
        for packet in packets:
            packet.stream = copy
            trial.mux_one(packet)
        trial.close()
    except (av.FFmpegError, ValueError):
        return False
    return True


def _lossless(stream, muxer: str, anywhere: bool) -> str:
    """The codec that holds a stream's values in this container, "" for one that is compressed and stays so `anywhere` else."""
    context = stream.codec_context
    if stream.type != "audio" or not context or not context.format:
        return ""
    kind, plain = context.format.name.rstrip("p"), context.name.startswith("pcm_")
    if anywhere and not plain:
        return ""
    # LPCM of disks and cameras has 16, 20 or 24 bits; players of .mp4 know FLAC better than PCM
    deep = kind == "s32" and any(word in context.name for word in ("24", "bluray", "dvd", "302")) or not plain and kind not in ("u8", "s16")
    if (muxer == "mp4" or not plain and muxer == "matroska") and (kind in ("u8", "s16") or deep) and context.layout.nb_channels <= 8:
        return "flac"
    return "pcm_s24le" if deep else _PCM.get(kind, "")


def unsupported_sound(clip: VideoClip, path: Path) -> list[str]:
    """Codecs of the clip's audio streams if the container of `path` cannot hold any of them, else nothing."""
    if not clip.sound:
        return []
    fitting = ways(clip.path, MUXERS[path.suffix.lower()])
    with contextlib.closing(open_container(clip.path)) as source:
        lacking = [name_of(s) for s in source.streams.audio if s.index not in fitting]
        return lacking if len(lacking) == len(source.streams.audio) else []


def check_sound(clip: VideoClip, label: str, target: Path, options: OutputOptions) -> None:
    """Refuse a container that takes none of the clip's sound; what is advised instead is tried before. Raises MediaError."""
    if not (options.audio and (lacking := unsupported_sound(clip, target))):
        return
    able = [suffix for suffix in (".mkv", ".mov", ".mp4") if suffix != target.suffix.lower()
            and suffix in CONTAINERS.get(options.codec, MUXERS) and not unsupported_sound(clip, Path("x" + suffix))]
    advice = f"choose an output ending in {' or '.join(able)}, or --no-audio" if able else "leave it away with --no-audio"
    raise MediaError(f"{label}: its sound ({', '.join(lacking)}) cannot be stored in {target.suffix}; {advice}")


def add_converted(output, stream, codec: str):
    """A stream of `codec` in the output, for what `converted` makes of `stream`."""
    context = stream.codec_context
    # some files tell only how many channels there are, which some containers refuse
    usual = {1: "mono", 2: "stereo", 6: "5.1", 8: "7.1"}.get(context.layout.nb_channels, context.layout.name)
    layout = usual if context.layout.name.endswith("channels") else context.layout.name
    copy = output.add_stream(codec, rate=context.sample_rate, layout=layout)
    kind = context.format.name.rstrip("p")
    kind = "s32" if codec == "pcm_s24le" or codec == "flac" and kind not in ("u8", "s16") else "s16" if codec == "flac" else kind
    copy.codec_context.format = kind
    if codec == "flac" and kind == "s32":
        copy.codec_context.options = {"bits_per_raw_sample": "24"}
    copy.codec_context.time_base = Fraction(1, context.sample_rate)
    return copy


def converted(clip: VideoClip, index: int, copy) -> Iterator[Timed]:
    """The sound of stream `index`, encoded anew into `copy`."""
    with contextlib.closing(open_container(clip.path)) as source:
        stream, encoder, following = source.streams[index], copy.codec_context, 0

        def encoded(frame: av.AudioFrame | None) -> Iterator[Timed]:
            """The packets that are ready behind a frame, with their times in seconds; None: the last ones."""
            return ((packet.dts * packet.time_base, packet) for packet in copy.encode(frame))

        for packet in chain(_audible(source, [stream], clip), [None]):
            with contextlib.suppress(av.FFmpegError):
                for frame in stream.codec_context.decode(packet):
                    pts = frame.pts if frame.pts is not None else packet.pts if packet else None       # a decoder may be packets behind
                    if frame.layout.name != encoder.layout.name:
                        frame = av.AudioFrame.from_ndarray(frame.to_ndarray(), frame.format.name, encoder.layout.name)
                        frame.sample_rate = encoder.sample_rate
                    frame.time_base = Fraction(1, encoder.sample_rate)
                    frame.pts = following if pts is None else round(pts * stream.time_base / frame.time_base)
                    following = frame.pts + frame.samples
                    yield from encoded(frame)
        yield from encoded(None)


def copied(source, copies: dict, clip: VideoClip) -> Iterator[Timed]:
    """The packets of the streams in `copies`, each for the stream that takes its place."""
    for packet in _audible(source, [source.streams[i] for i in copies], clip):
        when, packet.stream = packet.dts * packet.time_base, copies[packet.stream_index]
        yield when, packet


def _audible(source, streams: Sequence, clip: VideoClip) -> Iterator[av.Packet]:
    """The streams' packets that are to be heard or read, at their times in the output."""
    latest: dict[int, int] = {}
    before: dict[int, av.Packet] = {}                          # the last one that an edit list hides
    joins = Joins(source, -1, clip.joins)
    try:
        for packet in packets_of(source, streams):
            if packet.dts is None or not packet.size:
                continue
            joins.correct(packet)
            index = packet.stream_index
            if packet.stream.type == "audio":                  # no file takes sound that steps back, as where recordings overlap
                if packet.dts < latest.get(index, packet.dts):
                    continue
                latest[index] = packet.dts
            back = round(clip.shift / packet.time_base)
            if packet.pts is not None:
                packet.pts -= back
            packet.dts -= back
            if packet.is_discard:
                before[index] = packet
                continue
            # what is hidden stays hidden, but a decoder needs what comes right before 0 to begin
            lead = before.pop(index, None)
            if lead is not None and packet.dts >= 0 and lead.dts + (lead.duration or 0) >= packet.dts:
                yield lead
            yield packet
    except av.FFmpegError:
        return                                                 # the source breaks off here; the reader has said so
