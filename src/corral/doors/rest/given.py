"""What Litestar hands to a handler: the services, and the caller that the guard found."""

from litestar.di import NamedDependency

from corral.doors.rest.services import Caller, Services

GivenServices = NamedDependency[Services]
GivenCaller = NamedDependency[Caller]
