"""What a training run costs, and the settings that fit images and a machine."""
