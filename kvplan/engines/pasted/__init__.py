"""What people paste: scripts, manifests, lines of containers; which engine they start, with which words."""
