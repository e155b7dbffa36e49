"""A walk through the API with nothing but reflection: what a program of somebody else sees and may rely on."""
import sys
import time

import grpc
from google.protobuf import descriptor_pb2, message_factory
from google.protobuf.any_pb2 import Any
from google.protobuf.descriptor_pool import DescriptorPool
from google.rpc import error_details_pb2, status_pb2
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase

first_at, second_at, store_url, image = sys.argv[1:5]


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
print("unprotected", first.ask("Vm", "UnprotectVm", domain="d", vm="web").all_shipped)
events = first.ask("Event", "ListEvents", subject="d").events
print("events", events[0].outcome)
