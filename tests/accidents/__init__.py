"""Accidents on purpose: kills, full disks, damaged files, races, awkward inputs. `python -m accidents --help` (from ``tests``)."""
