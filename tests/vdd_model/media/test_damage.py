"""A decoder's silence is no health: what is damaged, cut off or left out is named, in every format, and what is whole is not."""
import struct
from types import SimpleNamespace

import av
import pytest
from media_tools import OLD, eight_bits, encoded, needs_codec, noisy, pattern, remuxed, save_clip, save_packets, seen, with_data
from PIL import Image

from vdd_model.media.reader import _is_short, gif_pictures
from vdd_model.media.video import probe

CUT = """mjpeg yuvj420p .mkv | mjpeg yuvj420p .avi | huffyuv yuv422p .avi | ffvhuff yuv420p .avi | qtrle rgb24 .mov |
libvpx yuv420p .webm | libvpx-vp9 yuv420p .webm | libx265 yuv420p .ts | libx264 yuv420p .mkv | libx264 yuv420p .ts | ffv1 yuv420p .mkv |
prores_ks yuv422p10le .mov | mpeg2video yuv420p .mpg | mpeg4 yuv420p .mp4 | png rgb24 .mov | libsvtav1 yuv420p .nut |
utvideo yuv420p .avi | magicyuv gbrp .avi | asv2 yuv420p .avi | jpegls rgb24 .avi | snow yuv420p .avi | msvideo1 rgb555le .avi |
amv yuvj420p .nut | svq1 yuv410p .mov | wmv2 yuv420p .avi | flv yuv420p .flv | cfhd yuv422p10le .avi | v210 yuv422p10le .mov |
rawvideo yuv420p .nut | libx264 yuv420p .mp4 | libx265 yuv420p .mp4 | libx265 yuv420p .mkv | gif rgb8 .gif | h261 yuv420p .avi |
cinepak rgb24 .avi | rpza rgb555le .mov | speedhq yuv422p .avi | exr gbrpf32le .mov"""


@pytest.mark.parametrize("codec, pix_fmt, suffix", [each.split() for each in CUT.split("|")])
def test_half_a_packet_is_never_a_whole_frame(tmp_path, codec, pix_fmt, suffix):
    """Of one clip whole and of the same with one packet cut: the first is never called damaged, the second always."""
    needs_codec(codec, not OLD or codec not in ("ffv1", "jpegls"))
    options = {"x265-params": "log-level=none"} if codec == "libx265" else {"strict": "experimental"}
    whole, cut = (seen(save_packets(tmp_path / f"{n}{suffix}", noisy(8, 144, 176), codec, pix_fmt, options, cut=n)) for n in (None, 5))
    assert whole == (8, 0, []) and cut[0] <= 8 and cut[1] > 0 and cut[2], codec


ENDS = """.rm rv10 yuv420p | .rm rv20 yuv420p | .mkv libx264 yuv420p | .mkv ffv1 yuv420p | .webm libvpx yuv420p | .ts libx264 yuv420p |
.mts mpeg2video yuv420p | .avi mjpeg yuvj420p | .flv flv yuv420p | .wmv wmv2 yuv420p | .y4m wrapped_avframe yuv420p |
.obu libsvtav1 yuv420p | .nut ffv1 yuv420p | .mpg mpeg2video yuv420p | .gif gif rgb8"""


@pytest.mark.parametrize("suffix, codec, pix_fmt", [each.split() for each in ENDS.split("|")])
def test_a_file_that_ends_within_its_last_frame(tmp_path, suffix, codec, pix_fmt):
    """Several of FFmpeg's demuxers pass over such a frame without a word."""
    needs_codec(codec, not OLD or (suffix, codec) != (".nut", "ffv1"))
    source = save_packets(tmp_path / f"in{suffix}", noisy(6, 144, 176), codec, pix_fmt, {})
    assert seen(source) == (6, 0, [])
    with av.open(str(source)) as file:
        place, size = max((packet.pos or 0, packet.size) for packet in file.demux(video=0) if packet.size)
    data = source.read_bytes()
    source.write_bytes(data[:place + size // 2 if place else len(data) - size // 2])
    frames, lost, notes = seen(source)
    assert frames <= 6 and lost >= 1 and notes
    assert suffix != ".rm" or probe(source).breaks_off


def test_recordings_that_were_written_live_are_whole(tmp_path):
    """Matroska without lengths, a transport stream with zeros behind it or that begins within a packet."""
    live = save_clip(tmp_path / "live.mkv", 6, container_options={"live": "1"})
    stream = save_clip(tmp_path / "in.ts", 6)
    padded, late = tmp_path / "padded.ts", tmp_path / "late.ts"
    padded.write_bytes(stream.read_bytes() + bytes(100))
    late.write_bytes(stream.read_bytes()[-88:] + stream.read_bytes())
    camera = save_clip(tmp_path / "camera.m2ts", 6, container_options={"mpegts_m2ts_mode": "1"})
    assert camera.stat().st_size % 192 == 0 and camera.read_bytes()[4::192][:9] == b"G" * 9
    for path in (live, stream, padded, late, camera):
        assert seen(path)[:2] == (6, 0) and probe(path).breaks_off == "", path
    for path in (live, camera):
        path.write_bytes(path.read_bytes()[:-9])
        assert probe(path).breaks_off


@pytest.mark.parametrize("short", [0, 20])
def test_motion_jpeg_without_end_markers(tmp_path, short):
    """Many cameras leave them away. What lacks a few bytes more lacks a part of its last rows."""
    whole = save_clip(tmp_path / "whole.avi", noisy(4, 144, 176, 0.05), codec="mjpeg", pix_fmt="yuvj420p")
    unended = remuxed(whole, tmp_path / "in.avi", lambda packet, i: with_data(packet, bytes(packet)[:-2 - short * (i == 2)]))
    assert seen(unended)[:2] == (4, short > 0)


def test_packets_of_vc2_tell_their_length(tmp_path):
    data = encoded(tmp_path / "a.vc2", "vc2", "yuv422p10le", eight_bits(0, 96, 128)).read_bytes()
    assert [_is_short(part, SimpleNamespace(name="dirac")) for part in (data, data[:len(data) // 2])] == [False, True]


@pytest.mark.parametrize("name, codec, pix_fmt, found", [("a.mp4", "libx264", "yuv420p", (8, 1)), ("a.mkv", "libx264", "yuv420p", (8, 1)),
                                                         ("a.avi", "dpx", "gbrp10le", (7, 1))])
def test_half_a_packet_among_smooth_frames(tmp_path, name, codec, pix_fmt, found):
    """Half of 47 bytes is decoded to its end, with what the decoder takes for the rest; half a picture a parser joins to the next."""
    source = save_packets(tmp_path / name, [pattern(i, 96, 128) for i in range(8)], codec, pix_fmt, {}, cut=3)
    assert seen(source)[:2] == found


@pytest.mark.parametrize("kind, params", [
    ("x264", "cabac=0:bframes=0"), ("x264", "interlaced=1"), ("x264", "slices=4:aud=1"),
    ("x264", "nal-hrd=cbr:vbv-maxrate=400:vbv-bufsize=400:bitrate=400:filler=1"),
    ("x265", "log-level=none:hash=1:repeat-headers=1:aud=1"), ("x265", "log-level=0:lossless=1")])
@pytest.mark.parametrize("suffix", [".mp4", ".ts"])
def test_whole_streams_of_all_kinds_are_whole(tmp_path, kind, params, suffix):
    source = save_clip(tmp_path / f"in{suffix}", 6, size=(96, 128), codec=f"lib{kind}", options={f"{kind}-params": params})
    frames, lost, notes = seen(source)
    assert (frames, lost) == (6, 0) and not any("damaged" in note for note in notes)


def test_gifs_of_other_programs(tmp_path):
    path = tmp_path / "in.gif"
    first, *rest = (Image.fromarray(eight_bits(i)) for i in range(6))
    first.save(path, save_all=True, append_images=rest, duration=40, loop=0, comment=b"made by hand" * 50)
    data = path.read_bytes()
    for content, lost in ((data, 0), (data[:-1], 0), (data + b"\0\0trailing", 0), (data[:-40], 2)):
        path.write_bytes(content)
        assert seen(path)[:2] == (6, lost), content[-20:]
    assert gif_pictures(data[:20]) == (0, True)                 # within its colors


@pytest.mark.parametrize("codec", ["libx264", "libx265"])
def test_bytes_missing_in_a_transport_stream(tmp_path, codec):
    source = save_clip(tmp_path / "in.ts", noisy(20, 96, 128, 0.05), codec=codec)
    assert seen(source) == (20, 0, [])
    data = source.read_bytes()
    middle = len(data) // 188 // 2 * 188
    source.write_bytes(data[:middle] + data[middle + 188:])
    frames, lost, notes = seen(source)
    assert frames and lost and any("damaged" in note for note in notes)


def test_frames_that_refer_to_one_that_is_not_there(tmp_path):
    """A recorder that lost a packet. Where the decoder leaves another frame out, it does without a word."""
    plain = save_clip(tmp_path / "plain.mp4", noisy(24, 96, 128, 0.05), options={"x264-params": "keyint=5:bframes=3"})
    left_out = []
    for dropped in (-1, *range(6, 12)):
        cut = remuxed(plain, tmp_path / "in.mkv", lambda packet, number, dropped=dropped: packet if number != dropped else None)
        shown, lost, _ = seen(cut)
        assert shown + lost == 24 - (dropped >= 0)
        left_out.append(lost)
    assert left_out[0] == 0 and max(left_out) > 0


@pytest.mark.parametrize("codec, pix_fmt", [("mpeg4", "yuv420p"), ("mjpeg", "yuvj420p")])
def test_an_avi_that_went_through_a_pipe_is_whole(tmp_path, codec, pix_fmt):
    """Its header was written before anybody knew how many frames there would be."""
    source = save_clip(tmp_path / "in.avi", 6, codec=codec, pix_fmt=pix_fmt)
    data = source.read_bytes()
    at = data.index(b"avih") + 8 + 16
    six, many = (struct.pack("<I", count) for count in (6, 1 << 30))
    assert data[at:at + 4] == six
    source.write_bytes(data[:at] + many + data[at + 4:].replace(six, many, 1))
    assert seen(source)[:2] == (6, 0) and not probe(source).breaks_off
