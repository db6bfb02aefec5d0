#!/usr/bin/env bash
# The project's environment around a command, `tools/ros_env.sh COMMAND...`, or in this shell,
# `source tools/ros_env.sh`. Made by tools/setup_env.sh.
#
# Where a ROS distribution with rclpy and tf2_ros is sourced, that is used; its environment lies in
# .venv-<distribution>. Else ROS comes from wheels, in .venv.

HAND_PERCEPTION_ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
export HAND_PERCEPTION_ROOT

if [[ -n ${ROS_DISTRO:-} ]] && python3 -c 'import rclpy, tf2_ros' 2>/dev/null; then
    HAND_PERCEPTION_ROS=$ROS_DISTRO
    VIRTUAL_ENV=$HAND_PERCEPTION_ROOT/.venv-$ROS_DISTRO
else
    HAND_PERCEPTION_ROS=wheels
    VIRTUAL_ENV=$HAND_PERCEPTION_ROOT/.venv
    # Found by everything else that starts from here, python or not.
    libraries=$VIRTUAL_ENV/lib
    for folder in "$VIRTUAL_ENV"/lib/python3.*/site-packages/ros_*.libs; do
        libraries=$libraries:$folder
    done
    export LD_LIBRARY_PATH=$libraries${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}
    export AMENT_PREFIX_PATH=$VIRTUAL_ENV${AMENT_PREFIX_PATH:+:$AMENT_PREFIX_PATH}
    export _ROS_WHEELS_BOOTSTRAP_COMPLETE=1 # the wheels need not restart python for the above
    export ROS_AUTOMATIC_DISCOVERY_RANGE=${ROS_AUTOMATIC_DISCOVERY_RANGE:-LOCALHOST}
    export ROS_DOMAIN_ID=${ROS_DOMAIN_ID:-73}
    unset libraries folder
fi
# OpenMP's threads must not spin for cores that other processes need.
export GOMP_SPINCOUNT=${GOMP_SPINCOUNT:-0}
export HAND_PERCEPTION_ROS VIRTUAL_ENV PATH=$VIRTUAL_ENV/bin:$PATH

if [[ ${BASH_SOURCE[0]} == "$0" && $# -gt 0 ]]; then
    exec "$@"
fi
