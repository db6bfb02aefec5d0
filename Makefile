# `make demo` shows the package at work, `make test` checks it; both make their environment first.
# PYTHON=python3.12 chooses the interpreter for it.

RUN := tools/ros_env.sh

.PHONY: setup demo test lint clean

setup:
	@tools/setup_env.sh

demo: setup
	$(RUN) python -m hand_perception.ros.demo --out out/demo

lint: setup
	$(RUN) ruff check .
	$(RUN) ruff format --check .
	$(RUN) mypy hand_perception

test: lint
	$(RUN) python -m pytest

clean:
	rm -rf .venv .venv-* build install log out *.egg-info .mypy_cache .ruff_cache .pytest_cache
