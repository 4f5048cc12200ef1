"""Why trained models say what they say."""
