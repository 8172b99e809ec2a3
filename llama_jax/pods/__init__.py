"""Slices of Cloud TPUs that are booked, set up, started and watched by gcloud."""
