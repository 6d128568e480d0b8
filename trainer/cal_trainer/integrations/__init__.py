"""Trains with cached weights in trainers of others. A module needs its trainer's package; nothing else imports it."""
