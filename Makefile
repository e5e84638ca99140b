# Every target sets up .venv by itself when it is missing or older than pyproject.toml.
PYTHON ?= python3
BIN := .venv/bin
STAMP := .venv/.installed

.PHONY: demo test parity lint bench score clean

demo: $(STAMP)
	$(BIN)/python -m vdd_model.app.demo --out outputs

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

score: $(STAMP)
	$(BIN)/python -m benchmarks.score

$(STAMP): pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e ".[standalone,train,test]"
	touch $@

clean:
	rm -rf .venv build dist *.egg-info
