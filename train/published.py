"""Published results on GoPro and DVD, to stand beside a table of one's own."""

# PSNR in dB on full frames, RGB; "-" where a paper gives no number. GoPro: 1111 full frames, `blur`; its SSIM column mixes both families,
# as the papers do. DVD: 10 test clips, 1000 frames.
PUBLISHED = (
    ("published", "GoPro PSNR dB", "GoPro SSIM", "GoPro LPIPS", "DVD PSNR dB", "parameters, M"),
    ("blurred input", "25.63", "0.858", "-", "-", "-"),
    ("Nah 2017 (video table)", "29.97", "-", "-", "-", "-"),
    ("SRN", "30.29", "0.901", "-", "29.98", "6.8"),
    ("ESTRNN", "31.07", "0.902", "-", "32.01", "2.2"),
    ("CDVD-TSP", "31.67", "0.928", "-", "32.13", "16.2"),
    ("NAFNet w32", "32.87", "-", "-", "-", "17.1"),
    ("NAFNet w64", "33.71", "-", "0.0781", "-", "67.9"),
    ("DSTNet+", "34.42", "0.969", "-", "33.93", "3.9"),
    ("BSSTNet", "35.98", "0.979", "-", "34.95", "-"),
    ("DiffBIR, 50 steps", "26.15", "-", "0.2366", "-", "-"),
    ("FideDiff (SD 2.1), 1 step", "28.79", "-", "0.0831", "-", "-"),
)
