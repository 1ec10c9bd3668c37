package svcproxy

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// Port is a port of a Service, or of a pod on its node, and where it leads.
type Port struct {
	Name     string // namespace/name:port of the Service or pod
	Owner    corev1.ObjectReference
	Protocol corev1.Protocol
	// Addresses to listen at; none are all of the node.
	Addresses []netip.Addr
	Port      uint16
	Endpoints []netip.AddrPort
	// Affinity is how long a client keeps its endpoint (sessionAffinity ClientIP); 0
	// for a new choice each time.
	Affinity time.Duration
}

// PortsOf returns the ports of Services on a node: at their cluster IP and external IPs,
// and at their node port. Headless ones, ExternalName and IPv6 have none here.
func PortsOf(services []corev1.Service, endpointSlices []discoveryv1.EndpointSlice, node string) []Port {
	of := make(map[string][]discoveryv1.EndpointSlice)
	for _, s := range endpointSlices {
		if s.AddressType == discoveryv1.AddressTypeIPv4 {
			key := s.Namespace + "/" + s.Labels[discoveryv1.LabelServiceName]
			of[key] = append(of[key], s)
		}
	}
	var ports []Port
	for i := range services {
		service := &services[i]
		if service.Spec.Type == corev1.ServiceTypeExternalName {
			continue
		}
		key := service.Namespace + "/" + service.Name
		internal, external := of[key], of[key]
		if policy := service.Spec.InternalTrafficPolicy; policy != nil && *policy == corev1.ServiceInternalTrafficPolicyLocal {
			internal = onNode(internal, node)
		}
		if service.Spec.ExternalTrafficPolicy == corev1.ServiceExternalTrafficPolicyLocal {
			external = onNode(external, node)
		}
		clusterIP, externalIPs := addressesOf(service.Spec.ClusterIP), addressesOf(service.Spec.ExternalIPs...)
		for _, p := range service.Spec.Ports {
			port := Port{
				Name: key + ":" + p.Name, Owner: ownerOf("Service", service.ObjectMeta), Protocol: protocolOf(p.Protocol), Addresses: clusterIP, Port: uint16(p.Port),
				Endpoints: endpointsOf(internal, p), Affinity: affinityOf(service),
			}
			if len(clusterIP) > 0 {
				ports = append(ports, port)
			}
			port.Endpoints = endpointsOf(external, p)
			if port.Addresses = externalIPs; len(externalIPs) > 0 {
				ports = append(ports, port)
			}
			if p.NodePort > 0 {
				port.Addresses, port.Port = nil, uint16(p.NodePort)
				ports = append(ports, port)
			}
		}
	}
	return ports
}

// addressesOf are those of IPv4 among the texts.
func addressesOf(texts ...string) []netip.Addr {
	var addresses []netip.Addr
	for _, text := range texts {
		if address, err := netip.ParseAddr(text); err == nil && address.Is4() {
			addresses = append(addresses, address)
		}
	}
	return addresses
}

// onNode leaves the endpoints on a node.
func onNode(endpointSlices []discoveryv1.EndpointSlice, node string) []discoveryv1.EndpointSlice {
	var local []discoveryv1.EndpointSlice
	for _, s := range endpointSlices {
		s.Endpoints = slices.DeleteFunc(slices.Clone(s.Endpoints), func(e discoveryv1.Endpoint) bool { return e.NodeName == nil || *e.NodeName != node })
		local = append(local, s)
	}
	return local
}

func ownerOf(kind string, o metav1.ObjectMeta) corev1.ObjectReference {
	return corev1.ObjectReference{APIVersion: "v1", Kind: kind, Namespace: o.Namespace, Name: o.Name, UID: o.UID}
}

func protocolOf(p corev1.Protocol) corev1.Protocol {
	if p == "" {
		return corev1.ProtocolTCP
	}
	return p
}

func affinityOf(service *corev1.Service) time.Duration {
	if service.Spec.SessionAffinity != corev1.ServiceAffinityClientIP {
		return 0
	}
	config := service.Spec.SessionAffinityConfig
	if config != nil && config.ClientIP != nil && config.ClientIP.TimeoutSeconds != nil {
		return time.Duration(*config.ClientIP.TimeoutSeconds) * time.Second
	}
	return time.Duration(corev1.DefaultClientIPServiceAffinitySeconds) * time.Second
}

// endpointsOf lists the endpoints of a Service's port that are ready. If none is,
// those that still serve while they end (KEP-1669), as kube-proxy does.
func endpointsOf(endpointSlices []discoveryv1.EndpointSlice, port corev1.ServicePort) []netip.AddrPort {
	var ready, ending []netip.AddrPort
	for _, s := range endpointSlices {
		number := slices.IndexFunc(s.Ports, func(p discoveryv1.EndpointPort) bool {
			return (p.Name == nil && port.Name == "" || p.Name != nil && *p.Name == port.Name) &&
				p.Port != nil && (p.Protocol == nil || *p.Protocol == protocolOf(port.Protocol))
		})
		if number < 0 {
			continue
		}
		for _, endpoint := range s.Endpoints {
			if len(endpoint.Addresses) == 0 {
				continue
			}
			address, err := netip.ParseAddr(endpoint.Addresses[0])
			if err != nil {
				continue
			}
			to := netip.AddrPortFrom(address, uint16(*s.Ports[number].Port))
			c := endpoint.Conditions
			switch {
			case c.Ready == nil || *c.Ready:
				ready = append(ready, to)
			case c.Serving != nil && *c.Serving && c.Terminating != nil && *c.Terminating:
				ending = append(ending, to)
			}
		}
	}
	if len(ready) == 0 {
		ready = ending
	}
	slices.SortFunc(ready, netip.AddrPort.Compare)
	return slices.Compact(ready)
}

// HostPortsOf returns the ports of the node that lead to pods (hostPort).
func HostPortsOf(pods []corev1.Pod) []Port {
	var ports []Port
	for i := range pods {
		pod := &pods[i]
		address, err := netip.ParseAddr(pod.Status.PodIP)
		ended := pod.Status.Phase == corev1.PodSucceeded || pod.Status.Phase == corev1.PodFailed
		if err != nil || pod.Spec.HostNetwork || ended {
			continue
		}
		containers := slices.Concat(pod.Spec.InitContainers, pod.Spec.Containers)
		for _, c := range containers {
			for _, p := range c.Ports {
				if p.HostPort == 0 {
					continue
				}
				port := Port{
					Name:     fmt.Sprintf("%s/%s:%s", pod.Namespace, pod.Name, strings.TrimSpace(p.Name)),
					Owner:    ownerOf("Pod", pod.ObjectMeta),
					Protocol: protocolOf(p.Protocol), Port: uint16(p.HostPort),
					Endpoints: []netip.AddrPort{netip.AddrPortFrom(address, uint16(p.ContainerPort))},
				}
				if host, err := netip.ParseAddr(p.HostIP); err == nil && !host.IsUnspecified() {
					port.Addresses = []netip.Addr{host}
				}
				ports = append(ports, port)
			}
		}
	}
	return ports
}
