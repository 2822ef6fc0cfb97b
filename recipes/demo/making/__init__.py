"""The stages that make the embedded base model of the demo."""
