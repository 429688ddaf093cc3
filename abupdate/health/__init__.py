"""Health programs and the monitor that turns their results into keep or roll back."""
