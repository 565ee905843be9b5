# Every target makes its own virtual environment; nothing has to be installed first but Python.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
KERAS := .venv-keras

.PHONY: demo test test-all test-keras check bench bench-kernels bench-data bench-serve bench-inference
.PHONY: clean

KERNELS := $(wildcard src/mbconv/kernels/native/*.cpp src/mbconv/kernels/native/*.h)

$(READY): pyproject.toml setup.py $(KERNELS)
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check -e ".[dev]"
	touch $@

demo: $(READY)  ## Train on scanned digits, look at the report, predict: under three minutes
	$(BIN)/python examples/demo.py

# A process for each core, one thread each: quicker than one process with all the threads.
TESTS := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n logical --dist loadfile

test: $(READY)  ## What must pass before every change; ten minutes on two cores
	$(TESTS)

test-all: $(READY)  ## Everything, before a release
	$(TESTS) -m "not keras"

test-keras: $(READY) $(KERAS)/.ready  ## Keras files against Keras itself; about 20 minutes
	MBCONV_KERAS=$(CURDIR)/$(KERAS)/bin/python $(BIN)/python -m pytest -m keras

$(KERAS)/.ready:
	$(PYTHON) -m venv $(KERAS)
	$(KERAS)/bin/pip install --quiet --disable-pip-version-check tensorflow-cpu tf-keras
	touch $@

check: $(READY)  ## Style and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: $(READY)  ## Ours against timm, fine-tuning; about an hour and a quarter
	$(BIN)/python benchmarks/finetune.py $(MBCONV_DATA)/clothing

bench-kernels: $(READY)  ## Training steps against timm and ResNet-50, memory kept, each kernel
	$(BIN)/python benchmarks/train_step.py
	$(BIN)/python benchmarks/train_step.py --memory
	$(BIN)/python benchmarks/kernels.py

bench-data: $(READY)  ## Pictures a second from JPEGs against torchvision and timm; two minutes
	$(BIN)/python benchmarks/data.py $(MBCONV_DATA)/clothing

bench-serve: $(READY)  ## The server under 32 clients, a tenth of them hostile; three minutes
	$(BIN)/python benchmarks/serve.py efficientnet_lite0 $(MBCONV_DATA)/clothing/test

bench-inference: $(READY)  ## Every runtime, ours and timm's networks in turn; about half an hour
	$(BIN)/python benchmarks/inference.py
	$(BIN)/python benchmarks/inference.py --operators

clean:
	rm -rf $(VENV) $(KERAS) build dist *.egg-info src/mbconv/kernels/native/*.so
