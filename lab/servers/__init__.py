"""Real servers for the hosts of a cluster."""

from lab.servers.nginx import Nginx, Server, content, sick_file

__all__ = ["Nginx", "Server", "content", "sick_file"]
