"""The tables: all that the service must not forget."""

from sqlalchemy import (
    JSON,
    BigInteger,
    Boolean,
    Column,
    Float,
    ForeignKeyConstraint,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    String,
    Table,
    Text,
)

metadata = MetaData()
UNFINISHED = ("starting", "processing")
"""The states of runs that wait or run."""

tokens = Table(
    "tokens",
    metadata,
    Column("hash", String, primary_key=True),
    Column("owner", String, nullable=False, index=True),
    Column("shown", String, nullable=False),  # its beginning, by which people know it
    Column("created_at", String, nullable=False),
)

secrets = Table(
    "secrets",
    metadata,
    Column("name", String, primary_key=True),
    Column("value", String, nullable=False),
)

models = Table(
    "models",
    metadata,
    Column("owner", String, primary_key=True),
    Column("name", String, primary_key=True),
    Column("visibility", String, nullable=False),
    Column("is_base", Boolean, nullable=False, default=False),
    Column("run_count", Integer, nullable=False, default=0),
    Column("created_at", String, nullable=False),
    *(
        Column(name, Text)
        for name in (
            "hardware", "description", "readme", "github_url", "paper_url", "license_url",
            "cover_image_url", "weights_url",
        )
    ),
)  # fmt: skip

versions = Table(
    "versions",
    metadata,
    Column("id", String, primary_key=True),
    Column("model_owner", String, nullable=False),
    Column("model_name", String, nullable=False),
    Column("created_at", String, nullable=False),
    Column("training", String),  # the run that made it; none for a base model
    Column("weights", String),  # the key of the archive's bytes; none for a base model
    Column("size", BigInteger, nullable=False, default=0),
    Column("capability", String, nullable=False),  # who knows it may fetch the weights
    Column("alias", String, index=True),  # its name in OpenAI's API
    ForeignKeyConstraint(["model_owner", "model_name"], ["models.owner", "models.name"]),
    Index("versions_of_model", "model_owner", "model_name", "created_at"),
)

files = Table(
    "files",
    metadata,
    Column("id", String, primary_key=True),
    Column("owner", String, nullable=False),
    Column("name", String, nullable=False),
    Column("content_type", String, nullable=False),
    Column("size", BigInteger),  # none while an upload's bytes have not come
    Column("sha256", String),
    Column("md5", String),
    Column("metadata", JSON, nullable=False, default=dict),
    Column("api", String, nullable=False),  # replicate, upload, input or openai: who lists it
    Column("capability", String, nullable=False),  # who knows it may write and read an upload
    Column("purpose", String),
    Column("created_at", String, nullable=False),
    Column("expires_at", String, index=True),
    Index("files_of_owner", "owner", "created_at"),
)

runs = Table(
    "runs",
    metadata,
    Column("id", String, primary_key=True),
    Column("kind", String, nullable=False),  # prediction or training
    Column("owner", String, nullable=False),
    Column("model", String, nullable=False),  # owner/name
    Column("version", String, nullable=False),
    Column("status", String, nullable=False),
    Column("input", JSON),
    Column("output", JSON(none_as_null=True)),
    Column("logs", Text, nullable=False, default=""),
    Column("error", Text),
    Column("metrics", JSON, nullable=False, default=dict),
    Column("created_at", String, nullable=False),
    Column("started_at", String),
    Column("completed_at", String),
    Column("deadline", String),
    Column("base_url", String, nullable=False),  # how its client reached the service
    Column("capability", String, nullable=False),  # who knows it may follow the output
    Column("webhook", Text),
    Column("webhook_events", JSON),
    Column("source", String, nullable=False, default="api"),
    Column("deployment", String),
    Column("destination", String),  # of a training
    Column("data_removed", Boolean, nullable=False, default=False),
    Column("bytes", BigInteger, nullable=False, default=0),  # input, output and logs
    Column("job", JSON),  # what only OpenAI's API says of a training
    Index("runs_of_owner", "owner", "kind", "created_at", "id"),
    Index("runs_by_status", "status", "kind"),
)

usage = Table(
    "usage",
    metadata,
    Column("owner", String, primary_key=True),
    Column("stored_bytes", BigInteger, nullable=False),
    Column("unfinished", Integer, nullable=False),  # runs that wait or run
)

points = Table(
    "points",  # what a training reports at each logged step and validation
    metadata,
    Column("run", String, primary_key=True),
    Column("number", Integer, primary_key=True),
    Column("created_at", Float, nullable=False),
    Column("record", JSON, nullable=False),
)

deployments = Table(
    "deployments",
    metadata,
    Column("owner", String, primary_key=True),
    Column("name", String, primary_key=True),
    Column("model", String, nullable=False),
    Column("version", String, nullable=False),
    Column("hardware", String, nullable=False),
    Column("min_instances", Integer, nullable=False),
    Column("max_instances", Integer, nullable=False),
    Column("number", Integer, nullable=False),
    Column("created_at", String, nullable=False),
)

outbox = Table(
    "outbox",
    metadata,
    Column("number", Integer, primary_key=True),
    Column("id", String, nullable=False),
    Column("run", String, nullable=False),
    Column("owner", String, nullable=False),
    Column("event", String, nullable=False),
    Column("url", Text, nullable=False),
    Column("payload", LargeBinary, nullable=False),
    Column("num_attempts", Integer, nullable=False, default=0),
    Column("due_at", Float, nullable=False),  # Unix seconds
    Index("outbox_of_run", "run", "number"),
    sqlite_autoincrement=True,  # no number twice, for they are the order
)
