PYTHON ?= python3
ext:
	$(PYTHON) setup.py -q build_ext --inplace
.PHONY: ext
