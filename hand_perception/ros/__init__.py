"""The edge to ROS 2: the only room that imports rclpy or a message package."""
