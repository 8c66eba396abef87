"""What `celery -A worker flower` shows in its list when it is started in this folder."""

# Flower's own columns lack the job, which is among the keyword arguments, and why a step has failed.
tasks_columns = "name,state,kwargs,received,runtime,worker,exception"
