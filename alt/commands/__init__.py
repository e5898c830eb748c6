"""The commands behind ``alt``: one file per command, and what all of them share.

``group`` turns errors into sentences and exit statuses, ``options`` holds the options that several commands have, and
``outputs`` checks what will be written before anything slow. Heavy imports wait until a command runs.
"""
