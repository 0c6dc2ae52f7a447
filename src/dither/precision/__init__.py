"""Number formats, quantised layers, the private probe of their harm, and the schedule."""
