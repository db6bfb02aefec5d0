"""Start the estimator on a camera's topics, and RViz if asked for.

    ros2 launch hand_perception estimator.launch.py image_topic:=/camera/image_raw \
        camera_info_topic:=/camera/camera_info rviz:=true

The node goes through its lifecycle by itself (`autostart`), so it starts alike in every
distribution; with `autostart:=false` a lifecycle manager does it.
"""

from launch.actions import DeclareLaunchArgument
from launch.conditions import IfCondition
from launch.substitutions import LaunchConfiguration, PathJoinSubstitution
from launch_ros.actions import Node
from launch_ros.parameter_descriptions import ParameterFile, ParameterValue
from launch_ros.substitutions import FindPackageShare

from launch import LaunchDescription

CONFIG = PathJoinSubstitution([FindPackageShare("hand_perception"), "config"])

ARGUMENTS = [
    DeclareLaunchArgument(
        "image_topic",
        default_value="image",
        description="sensor_msgs/Image; compressed images are expected on <image_topic>/compressed",
    ),
    DeclareLaunchArgument(
        "camera_info_topic",
        default_value="camera_info",
        description="sensor_msgs/CameraInfo of the same camera",
    ),
    DeclareLaunchArgument(
        "image_transport",
        default_value="raw",
        choices=["raw", "compressed"],
        description="which of the two to listen to",
    ),
    DeclareLaunchArgument(
        "method", default_value="landmark_fit", description="method that estimates the hands"
    ),
    DeclareLaunchArgument("device", default_value="auto", description="auto, cpu, cuda or cuda:N"),
    DeclareLaunchArgument(
        "params_file",
        default_value=PathJoinSubstitution([CONFIG, "estimator.yaml"]),
        description="parameters of the node; the arguments here go before it",
    ),
    DeclareLaunchArgument(
        "namespace", default_value="", description="namespace of the node and its topics"
    ),
    DeclareLaunchArgument(
        "use_sim_time",
        default_value="false",
        choices=["true", "false"],
        description="take the time from /clock",
    ),
    DeclareLaunchArgument(
        "rviz", default_value="false", choices=["true", "false"], description="start RViz too"
    ),
    DeclareLaunchArgument(
        "autostart",
        default_value="true",
        choices=["true", "false"],
        description="configure and activate without a lifecycle manager",
    ),
]


def generate_launch_description() -> LaunchDescription:
    """The estimator and, by argument, RViz."""
    use_sim_time = ParameterValue(LaunchConfiguration("use_sim_time"), value_type=bool)
    namespace = LaunchConfiguration("namespace")
    estimator = Node(
        package="hand_perception",
        executable="estimator_node",
        name="hand_perception_estimator",
        namespace=namespace,
        parameters=[
            ParameterFile(LaunchConfiguration("params_file"), allow_substs=True),
            {
                "method": ParameterValue(LaunchConfiguration("method"), value_type=str),
                "device": ParameterValue(LaunchConfiguration("device"), value_type=str),
                "image_transport": LaunchConfiguration("image_transport"),
                "autostart": ParameterValue(LaunchConfiguration("autostart"), value_type=bool),
                "use_sim_time": use_sim_time,
            },
        ],
        # The node derives <image>/compressed from `image`.
        remappings=[
            ("image", LaunchConfiguration("image_topic")),
            ("camera_info", LaunchConfiguration("camera_info_topic")),
        ],
        output="screen",
        respawn=False,
    )
    rviz = Node(
        package="rviz2",
        executable="rviz2",
        name="rviz2",
        namespace=namespace,
        arguments=["-d", PathJoinSubstitution([CONFIG, "hand_perception.rviz"])],
        parameters=[{"use_sim_time": use_sim_time}],
        condition=IfCondition(LaunchConfiguration("rviz")),
    )
    return LaunchDescription([*ARGUMENTS, estimator, rviz])
