"""The page's limit on uploads: ``RequestLimits`` checks a request's body, ``StoreLimits`` files and clients."""

UPLOAD_MIB = 64
"""MiB of one upload, unless ``medunifier serve --upload_mib`` sets another."""
