"""A walk through the API with nothing but reflection: what a program of somebody else sees and may rely on.

The whole flow of two sites: protect, scan, import, plan, follow, complete by consent, back the same way, by force, and back.
"""
import sys
import time
import uuid

import grpc
from google.protobuf import descriptor_pb2, message_factory
from google.protobuf.any_pb2 import Any
from google.protobuf.descriptor_pool import DescriptorPool
from google.rpc import error_details_pb2, status_pb2
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase

first_at, second_at, store_url, image, first_disks, second_disks, guest = sys.argv[1:8]


class Appliance:
    def __init__(self, address):
        # Python's default limit for trailers is 8 KiB: errors must fit.
        self.channel = grpc.insecure_channel(address, options=[("grpc.default_authority", "appliance")])
        self.database = ProtoReflectionDescriptorDatabase(self.channel)
        self.pool = DescriptorPool(self.database)

    def services(self):
        return [s for s in self.database.get_services() if s.startswith("freshet.v1.")]

    def call(self, service, method, /, stream=False, **fields):
        found = self.pool.FindServiceByName(service).FindMethodByName(method)
        ask = message_factory.GetMessageClass(found.input_type)
        answer = message_factory.GetMessageClass(found.output_type)
        make = self.channel.unary_stream if stream else self.channel.unary_unary
        stub = make(
            f"/{service}/{method}",
            request_serializer=ask.SerializeToString,
            response_deserializer=answer.FromString,
        )
        return stub(ask(**fields), timeout=60)

    def ask(self, service, method, /, **more):
        return self.call(f"freshet.v1.{service}Service", method, **more)


def name_of(message, field):
    number = getattr(message, field)
    return message.DESCRIPTOR.fields_by_name[field].enum_type.values_by_number[number].name


def details(error):
    """Code, kind, domain and field of a rich status."""
    raw = dict(error.trailing_metadata())["grpc-status-details-bin"]
    info, field = None, ""
    for packed in status_pb2.Status.FromString(raw).details:
        if packed.Is(error_details_pb2.ErrorInfo.DESCRIPTOR):
            info = error_details_pb2.ErrorInfo()
            packed.Unpack(info)
        if packed.Is(error_details_pb2.BadRequest.DESCRIPTOR):
            bad = error_details_pb2.BadRequest()
            packed.Unpack(bad)
            field = bad.field_violations[0].field
    assert info.metadata["what_to_do"]
    return error.code().name, info.metadata["kind"], info.domain, field


def fails(call):
    try:
        call()
    except grpc.RpcError as error:
        return details(error)
    raise AssertionError("it must fail")


def plan(disks, mode, direction=0, planned=False, **options):
    return {
        "general": {"domain": "d", "mode": mode, "direction": direction},
        "failover": {"datastore": disks, "planned": planned},
        "dr": {"log_size_bytes": 256 << 20},
        "options": options,
    }


AS_NEEDED, CONTINUOUS = 1, 2
AWAY, BACK = 1, 2


def ended(site, task):
    """The task as it is when nothing changes it any more, watched as an operator would."""
    for change in site.ask("Task", "WatchTask", stream=True, id=task.id):
        last = change.task
        assert not last.HasField("question"), last
    return name_of(last, "state"), [step.name for step in last.steps if step.state != "skipped"]


def until(site, mode, status="PROTECTION_STATUS_RECOVERABLE"):
    """Waits until the domain is in this mode; with the site that owns it."""
    for change in site.ask("Domain", "WatchDomain", stream=True, name="d"):
        domain = change.domain
        good = not status or name_of(domain, "status") == status
        if name_of(domain, "mode") == mode and good and domain.owner_site:
            return domain.owner_site


def idle(site):
    """Waits until nothing works on the domain at a site."""
    while site.ask("Task", "ListTasks", domain="d", running_only=True).tasks:
        time.sleep(0.1)


first, second = Appliance(first_at), Appliance(second_at)
health = first.call("grpc.health.v1.Health", "Check", service="")
print("health", name_of(health, "status"))
print("services", len(first.services()))
site = first.ask("Site", "GetSite")
print("site", site.site, site.role)
first.ask("Store", "AddStore", name="s", url=store_url)
print("store added")
code, kind, domain, _ = fails(lambda: first.ask("Store", "AddStore", name="t", url=store_url))
print("refused", code, kind, domain)
made = first.ask("Domain", "CreateDomain", name="d", store="s")
print("domain", name_of(made.domain, "mode"))
vm = first.ask("Vm", "ProtectVm", domain="d", vm="web", disks=[{"name": "root", "path": image}])
print("protected", vm.vm.name)
for change in first.ask("Domain", "WatchDomain", stream=True, name="d"):
    if name_of(change.domain, "status") == "PROTECTION_STATUS_RECOVERABLE":
        print("recoverable")
        break
assert first.ask("Domain", "CutPoint", domain="d").point > 0
print("point")
second.ask("Store", "AddStore", name="away", url=store_url)
for seen in second.ask("Store", "ScanStore", stream=True, name="away"):
    print("scanned", seen.domain, seen.owner_site)
imported = second.ask("Domain", "ImportDomain", store="away", name="d")
print("imported", name_of(imported.domain, "mode"))
print("twice", fails(lambda: second.ask("Domain", "ImportDomain", store="away", name="d"))[0])
bad = fails(lambda: first.ask("Vm", "ProtectVm", domain="d", vm="x", disks=[{"name": "root", "path": "relative"}]))
print("invalid", bad[0], bad[3])

# The runbook of the way back: refused with all that is wrong in it, then set, and told as it was set.
wrong = "[[groups]]\nname = 'all'\ndelay_seconds = 999999\nvms = [{ vm = 'nobody' }]\n"
bad = fails(lambda: first.ask("Runbook", "SetRunbook", domain="d", kind=2, text=wrong))
print("runbook", bad[0])
good = "[[groups]]\nname = 'all'\nvms = [{ vm = 'web', delay_seconds = 1 }]\n"
print("runbook", first.ask("Runbook", "SetRunbook", domain="d", kind=2, text=good).runbook.revision)
assert first.ask("Runbook", "GetRunbook", domain="d", kind=2).runbook.text == good

# Continuous failover: looked at, started once though asked for twice, followed.
findings = second.ask("Failover", "PlanFailover", plan=plan("/nowhere/at/all", CONTINUOUS)).findings
print("plan", sorted({f"{f.stage} {f.field} {name_of(f, 'severity')}" for f in findings}))
looked = second.ask("Failover", "PlanFailover", plan=plan(second_disks, CONTINUOUS))
print("plan", [(vm.vm, vm.included) for vm in looked.summary.vms], looked.summary.owner_site, looked.summary.loss or "no loss")
request = str(uuid.uuid4())
start = lambda: second.ask("Failover", "StartContinuousFailover", plan=plan(second_disks, CONTINUOUS), request_id=request)
task = start().task
assert start().task.id == task.id
print("followed", *ended(second, task))
print("follows", until(second, "DOMAIN_MODE_CONTINUOUS_REHYDRATION_IN_PROGRESS"))

# Completed by consent; the old site follows by itself.
remote = {"failover": {"datastore": first_disks}, "dr": {"log_size_bytes": 256 << 20}}
looked = second.ask("Failover", "PlanCompletion", domain="d", planned=True, resume_remote=remote)
print("conditions", len(looked.summary.remote_conditions) > 0, looked.summary.loss or "no loss")
task = second.ask("Failover", "CompleteFailover", domain="d", planned=True, resume_remote=remote).task
print("completed", *ended(second, task))
print("runs", until(second, "DOMAIN_MODE_RUNNING_IN_FAILOVER"))
print("follows", until(first, "DOMAIN_MODE_CONTINUOUS_REHYDRATION_IN_PROGRESS"))
idle(first)

# Back: what follows at home is completed, by the runbook of that way.
print("order", list(first.ask("Failover", "PlanCompletion", domain="d", planned=True).summary.starting))
task = first.ask("Failover", "CompleteFailover", domain="d", planned=True).task
print("back", ended(first, task)[0], until(first, "DOMAIN_MODE_PROTECTED"))
idle(second)

# By force: refused without the token of what would be lost.
in_place = plan(second_disks, CONTINUOUS, in_place=True, accept_divergence=True)
print("followed", ended(second, second.ask("Failover", "StartContinuousFailover", plan=in_place).task)[0])
until(second, "DOMAIN_MODE_CONTINUOUS_REHYDRATION_IN_PROGRESS")
print("forced", fails(lambda: second.ask("Failover", "CompleteFailover", domain="d"))[0])
looked = second.ask("Failover", "PlanCompletion", domain="d")
assert looked.confirmation_token and looked.summary.loss, looked
task = second.ask("Failover", "CompleteFailover", domain="d", confirmation_token=looked.confirmation_token).task
print("forced", *ended(second, task))
print("runs", until(second, "DOMAIN_MODE_RUNNING_IN_FAILOVER"))
print("fenced", until(first, "DOMAIN_MODE_FENCED", status=None))

# Its operator switches the guest off that runs on at the fenced site.
with open(guest, "w") as state:
    state.write("off\n")

# Failback, as needed, onto the disks that are there.
back = plan(first_disks, AS_NEEDED, BACK, planned=True, in_place=True, accept_divergence=True)
print("not confirmed", fails(lambda: first.ask("Failback", "StartFailback", plan=back))[0])
looked = first.ask("Failover", "PlanFailover", plan=back)
print("overwritten", looked.summary.overwritten.startswith("this site wrote"))
task = first.ask("Failback", "StartFailback", plan=back, confirmation_token=looked.confirmation_token).task
print("back", *ended(first, task))
print("home", until(first, "DOMAIN_MODE_PROTECTED"))
idle(second)
print("nothing to cancel", fails(lambda: second.ask("Failover", "CancelFailover", domain="d"))[0])
print("tasks", len(first.ask("Task", "ListTasks", domain="d").tasks), len(second.ask("Task", "ListTasks", domain="d").tasks))
print("unprotected", first.ask("Vm", "UnprotectVm", domain="d", vm="web").all_shipped)
events = first.ask("Event", "ListEvents", subject="d").events
print("events", events[0].outcome)
