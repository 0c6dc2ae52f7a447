"""Where ranks are, and how their messages travel: one file a transport."""
