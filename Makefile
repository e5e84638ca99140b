# Every target sets up .venv by itself when it is missing or older than pyproject.toml.
PYTHON ?= python3
BIN := .venv/bin
STAMP := .venv/.installed

.PHONY: demo test lint bench score clean

demo: $(STAMP)
	$(BIN)/python -m vdd_model.app.demo --out outputs

test: $(STAMP)
	$(BIN)/python -m pytest -n 2 --dist loadfile

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
