#!/usr/bin/env bash
# Makes the environment of tools/ros_env.sh, once: later calls return at once, without the network.
# PYTHON names the interpreter to make it with.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/ros_env.sh"
cd "$HAND_PERCEPTION_ROOT"

stamp=$VIRTUAL_ENV/.hand_perception_setup
wanted=$(cat requirements*.txt constraints.txt setup.py setup.cfg tools/setup_env.sh \
    ros_overlay/tf2_msgs/*.* ros_overlay/tf2_msgs/msg/* <(echo "$VIRTUAL_ENV") | cksum)
if [[ -x $VIRTUAL_ENV/bin/python && $(cat "$stamp" 2>/dev/null) == "$wanted" ]]; then
    exit 0
fi

say() { echo "setup: $*" >&2; }
fail() { say "$*"; exit 1; }
pip() {
    "$VIRTUAL_ENV/bin/python" -m pip --disable-pip-version-check "$@" 2> >(grep -v '^WARNING' >&2)
}

# A Python of 3.10 to 3.13 (the wheels') that can make a venv and be compiled against.
find_python() {
    local candidate
    for candidate in ${PYTHON:-python3 python3.12 python3.11 python3.13 python3.10}; do
        if "$candidate" - 2>/dev/null <<'EOF'
import ensurepip, os, sys, sysconfig, venv
assert (3, 10) <= sys.version_info < (3, 14)
assert os.path.isfile(os.path.join(sysconfig.get_paths()["include"], "Python.h"))
EOF
        then
            echo "$candidate"
            return
        fi
    done
    return 1
}

# The wheels' CMake exports name the include folders of the image that they were built in.
repair_exports() {
    "$VIRTUAL_ENV/bin/python" - "$VIRTUAL_ENV/share" <<'EOF'
import pathlib, re, sys, sysconfig
import numpy

includes = {
    r"/opt/python/[^/;\"]+/lib/[^;\"]*?/numpy/_core/include": numpy.get_include(),
    r"/opt/python/[^/;\"]+/include/python3\.\d+": sysconfig.get_paths()["include"],
}
for path in pathlib.Path(sys.argv[1]).rglob("*.cmake"):
    text = repaired = path.read_text()
    for built, here in includes.items():
        repaired = re.sub(built, lambda _: here, repaired)
    if repaired != text:
        path.write_text(repaired)
EOF
}

# tf2_msgs, which the wheels lack, goes into the environment like one of them.
build_tf2_msgs() {
    local build=$VIRTUAL_ENV/build/tf2_msgs packages tool
    packages=$("$VIRTUAL_ENV/bin/python" -c 'import sysconfig; print(sysconfig.get_paths()["purelib"])')
    for tool in cmake ninja; do
        command -v $tool >/dev/null || pip install -q "$tool"
    done
    rm -rf "$build"
    repair_exports
    (
        export PATH=$VIRTUAL_ENV/bin:$PATH CMAKE_PREFIX_PATH=$VIRTUAL_ENV
        cmake -G Ninja -S ros_overlay/tf2_msgs -B "$build" -DBUILD_TESTING=OFF \
            -DCMAKE_BUILD_TYPE=Release -DCMAKE_INSTALL_PREFIX="$VIRTUAL_ENV" \
            -DPython3_EXECUTABLE="$VIRTUAL_ENV/bin/python" \
            -DPYTHON_INSTALL_DIR="${packages#"$VIRTUAL_ENV"/}"
        cmake --build "$build" --target install
    ) >"$VIRTUAL_ENV/tf2_msgs.log" 2>&1 ||
        fail "building tf2_msgs failed; $VIRTUAL_ENV/tf2_msgs.log says why"
    rm -rf "$build"
    echo "$PWD/ros_overlay/tf2_ros" >"$packages/hand_perception_tf2_ros.pth"
}

if [[ $HAND_PERCEPTION_ROS == wheels ]]; then
    [[ $(uname -sm) == "Linux x86_64" ]] ||
        fail "the ROS wheels are for Linux on x86-64; elsewhere source a ROS distribution first"
    command -v c++ >/dev/null || fail "a C++ compiler is needed: sudo apt install build-essential"
    if [[ ! -x $VIRTUAL_ENV/bin/python ]]; then
        python=$(find_python) || fail "a Python of 3.10 to 3.13 with venv and headers is needed:" \
            "sudo apt install python3-venv python3-dev, or name one with PYTHON=..."
        say "making $VIRTUAL_ENV with $("$python" -V)"
        "$python" -m venv "$VIRTUAL_ENV"
    fi
    "$VIRTUAL_ENV/bin/python" -c 'import torch' 2>/dev/null || pip install -q torch==2.13.0
    say "installing the libraries and ROS 2 wheels"
    pip install -q -r requirements.txt -r requirements-ros.txt -r requirements-dev.txt \
        -c constraints.txt
    say "building tf2_msgs"
    build_tf2_msgs
    pip install -q --no-deps --no-build-isolation -e .
else
    if [[ ! -x $VIRTUAL_ENV/bin/python ]]; then
        say "making $VIRTUAL_ENV on top of ROS 2 $ROS_DISTRO"
        "${PYTHON:-python3}" -m venv --system-site-packages "$VIRTUAL_ENV"
    fi
    # The distribution's message packages are compiled against its NumPy.
    python3 -c 'import numpy; print(f"numpy=={numpy.__version__}")' >"$VIRTUAL_ENV/numpy.txt"
    "$VIRTUAL_ENV/bin/python" -c 'import torch' 2>/dev/null ||
        pip install -q torch==2.13.0 -c "$VIRTUAL_ENV/numpy.txt"
    say "installing the libraries beside ROS 2 $ROS_DISTRO"
    pip install -q -e '.[test]' -c "$VIRTUAL_ENV/numpy.txt"
fi
echo "$wanted" >"$stamp"
say "done"
