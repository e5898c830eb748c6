# Everything runs in .venv, which the first target that needs it creates.
# Another interpreter: make PYTHON=python3.12 demo. More test processes: make JOBS=8 test. Another build of torch:
# TORCH_INDEX=https://download.pytorch.org/whl/cpu make install

PYTHON ?= python3
VENV ?= .venv
JOBS ?= 2
ARGS ?=
TORCH_INDEX ?=

BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --disable-pip-version-check -c constraints.txt
STAMP := $(VENV)/.installed
SOURCES := $(wildcard csrc/*.h csrc/cpu/*.h csrc/cpu/*.cpp)

CPP := $(wildcard csrc/*.h csrc/cpu/*.h csrc/cpu/*.cpp csrc/cuda/*.h csrc/cuda/*.c* tests/cuda/*.cpp)

# One thread per test process: OpenMP threads of several processes on the same cores stall one another.
ONE_THREAD := OMP_NUM_THREADS=1 MKL_NUM_THREADS=1
PYTEST := $(ONE_THREAD) $(BIN)/python -m pytest

.DEFAULT_GOAL := help
.PHONY: help install ext demo tradeoff test test-slow test-newest fuzz bench docs gpu gpu-pack aot aot-check cuda-resources cuda-check lint format wheel clean distclean

help: ## show this list
	@grep -E '^[a-z-]+:.*##' $(firstword $(MAKEFILE_LIST)) | sed -E 's/:.*## /\t/' | expand -t 14

# torch and the build tools come first, so that the second step can build against the torch that will run
# (no isolated build, which would download torch a second time).
$(VENV)/.torch: constraints.txt
	@echo "==> $(VENV): Python environment with PyTorch (a few minutes and about 5 GB on disk the first time)"
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(PIP) $(if $(TORCH_INDEX),--index-url $(TORCH_INDEX)) torch torchvision
	$(PIP) numpy setuptools wheel ninja
	@touch $@

$(STAMP): $(VENV)/.torch pyproject.toml setup.py $(SOURCES)
	@echo "==> $(VENV): alt-kernels with its extras, compiling the CPU kernels"
	$(PIP) --no-build-isolation -e ".[models,bench,docs,dev]"
	@touch $@

install: $(STAMP) ## create .venv and install the package with every extra

ext: ## rebuild the compiled library in place, with $(PYTHON)
	AK_REQUIRE_EXT=1 $(PYTHON) setup.py -q build_ext --inplace

demo: $(STAMP) ## the main job, under three minutes: a patched ViT-B/16 on photographs, then the small ALT (ARGS="--help")
	$(BIN)/alt demo $(ARGS)

tradeoff: $(STAMP) ## accuracy against cost as r grows: the small ALT with five seeds at every r
	$(BIN)/alt tradeoff $(ARGS)

test: $(STAMP) ## the fast tests
	$(PYTEST) -m "not slow and not gpu" -n $(JOBS) --benchmark-disable $(ARGS)

test-slow: $(STAMP) ## builds of wheels, torch.compile, several processes: the rest of the CPU tests
	$(PYTEST) -m "slow and not gpu" --benchmark-disable $(ARGS)

# The library that was built for the oldest torch, beside the newest that pyproject.toml allows. Left out is the emulator of
# compiled code, which knows the launches of one version of Triton.
NEWEST := build/newest
test-newest: $(STAMP) ## kernels with the newest torch, Triton and numpy that pyproject.toml allows (PYTHON=python3.13)
	rm -rf $(NEWEST) && $(PYTHON) -m venv $(NEWEST)
	$(BIN)/python -c 'import tomllib; print(*tomllib.load(open("pyproject.toml", "rb"))["project"]["dependencies"], sep="\n")' > $(NEWEST)/requirements.txt
	$(NEWEST)/bin/python -m pip install --disable-pip-version-check -r $(NEWEST)/requirements.txt triton pytest hypothesis
	$(ONE_THREAD) $(NEWEST)/bin/python -m pytest -m "not slow and not gpu" tests/test_implementations_agree.py tests/triton \
		--ignore tests/triton/test_compiled.py $(ARGS)

fuzz: $(STAMP) ## 2,640 damaged files to every reader (ARGS="--inputs 100 --seed 3"), 40,000 calls of the operations under sanitizers
	$(ONE_THREAD) $(BIN)/python -m tests.fuzz $(ARGS)
	$(ONE_THREAD) $(BIN)/python -m tests.fuzz.calls

bench: $(STAMP) ## benchmarks against their rivals (one thread)
	$(PYTEST) benchmarks --benchmark-only $(ARGS)

# On a machine with a GPU, without network or .venv: $(PYTHON) has torch 2.11, Triton, pytest and hypothesis (train: the
# extra [models]), and nvcc beside it where there is no PACK.
#   make gpu SECTIONS="test bench" OUT=folder BUDGET=seconds-per-section WHEELS=folder DEVICE=cpu (a dry run)
#   make gpu TOTAL=430 PACK=build/gpu-pack     a first call of fifteen minutes on a GPU; its last line says what is next
gpu: ## everything that needs a GPU: test sanitize tune bench train (benchmarks/README.md)
	PYTHONPATH="$(CURDIR):$(CURDIR)/benchmarks$${PYTHONPATH:+:$$PYTHONPATH}" $(PYTHON) -m gpu $(SECTIONS) \
	    $(if $(OUT),--out "$(OUT)") $(if $(DEVICE),--device $(DEVICE)) $(if $(BUDGET),--budget $(BUDGET)) \
	    $(if $(TOTAL),--total $(TOTAL)) $(if $(PACK),--pack "$(PACK)") $(if $(WHEELS),--wheels "$(WHEELS)") $(ARGS)

# Here, without a GPU; PACK_PYTHON is an interpreter of the GPU machine's release.
PACK_PYTHON ?= python3.12
gpu-pack: $(STAMP) ## build/gpu-pack: all that a GPU machine would have to compile or fetch (nvcc, no GPU)
	PYTHONPATH="$(CURDIR):$(CURDIR)/benchmarks" $(BIN)/python -m gpu.pack --python "$(PACK_PYTHON)" \
	    --out "$(if $(PACK),$(PACK),build/gpu-pack)" $(ARGS)

aot: $(STAMP) ## compile every Triton kernel for sm_80, sm_90, sm_100 and write their resources (no GPU needed)
	env -u TRITON_INTERPRET $(BIN)/python -m tools.aot --out docs/kernels_resources.md

# A commit's time chooses the sample, so that four commits see every case and each is repeatable.
TURN ?= $(shell git log -1 --format=%ct 2>/dev/null || echo 0)
aot-check: $(STAMP) ## compile every Triton kernel and a fourth of the other cases: no spill, no empty kernel
	env -u TRITON_INTERPRET $(BIN)/python -m tools.aot --check --sample 4 --turn $(TURN)

cuda-resources: $(STAMP) ## compile csrc/cuda for sm_80, sm_90, sm_100 and write the kernels' resources (nvcc, no GPU)
	AK_BUILD_CUDA=1 TORCH_CUDA_ARCH_LIST="8.0;9.0;10.0" $(BIN)/python setup.py -q build_ext --build-lib build/cuda
	$(BIN)/python -m tools.cuda_resources build/cuda/alt_kernels/_C_cuda.abi3.so --out docs/kernels_resources_cuda.md

cuda-check: $(STAMP) ## the same, without writing the table; where there is no nvcc, it says so
	@if command -v nvcc >/dev/null || test -x /usr/local/cuda/bin/nvcc; then \
	    AK_BUILD_CUDA=1 TORCH_CUDA_ARCH_LIST="8.0;9.0;10.0" $(BIN)/python setup.py -q build_ext --build-lib build/cuda && \
	    $(BIN)/python -m tools.cuda_resources build/cuda/alt_kernels/_C_cuda*.so --out build/cuda/resources.md; \
	else echo "no nvcc here: csrc/cuda is not compiled"; fi

docs: $(STAMP) ## build the documentation into build/site; a broken link is an error
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

lint: $(STAMP) ## ruff, mypy and clang-format
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/clang-format --dry-run -Werror $(CPP)
	$(BIN)/mypy

format: $(STAMP) ## rewrite the sources in the house format
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(BIN)/clang-format -i $(CPP)

wheel: $(STAMP) ## dist/: sdist and wheel; wheelhouse/: the wheel as manylinux, without libtorch
	rm -rf dist wheelhouse
	AK_REQUIRE_EXT=1 AK_BUILD_CUDA=0 $(BIN)/python -m build --no-isolation
	PATH="$(abspath $(BIN)):$$PATH" $(BIN)/auditwheel repair -w wheelhouse \
	    --exclude 'libtorch*' --exclude 'libc10*' dist/*.whl

clean: ## remove what builds and tests left
	rm -rf build dist wheelhouse *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis .benchmarks
	rm -f alt_kernels/_C*.so
	find . -name __pycache__ -type d -not -path './$(VENV)/*' -prune -exec rm -rf {} +

distclean: clean ## the environment as well
	rm -rf $(VENV)
