package node

import (
	"context"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"net/http"
	"net/netip"
	"slices"
	"strings"

	certificatesv1 "k8s.io/api/certificates/v1"
	corev1 "k8s.io/api/core/v1"
)

const requestsPath = "/apis/certificates.k8s.io/v1/certificatesigningrequests"

// nodesGroup is the group of all kubelets, and nodeUser is one (k8s.io/kubernetes
// plugin/pkg/auth/authorizer/node).
const nodesGroup = "system:nodes"

func nodeUser(name string) string { return "system:node:" + name }

// followRequests approves what kubelets of other nodes ask to serve with, until ctx ends:
// who may have which address kube-controller-manager does not know. The rest is approved by
// that, or by the user.
func (n *Node) followRequests(ctx context.Context) {
	refused := make(map[string]bool)
	n.follow(ctx, []string{requestsPath}, func() error {
		var requests certificatesv1.CertificateSigningRequestList
		if err := n.client.get(ctx, requestsPath, &requests); err != nil {
			return err
		}
		var failures error
		for i := range requests.Items {
			request := &requests.Items[i]
			if request.Spec.SignerName != certificatesv1.KubeletServingSignerName || len(request.Status.Conditions) > 0 || refused[request.Name] {
				continue
			}
			var node corev1.Node
			if err := n.client.get(ctx, nodesPath+"/"+strings.TrimPrefix(request.Spec.Username, nodeUser("")), &node); err != nil {
				failures = errors.Join(failures, err)
				continue
			}
			if err := serves(node, request.Spec); err != nil {
				refused[request.Name] = true
				n.log.Warn("a request for a certificate is left to the user", "request", request.Name, "user", request.Spec.Username, "reason", err)
				continue
			}
			failures = errors.Join(failures, n.approve(ctx, request))
		}
		return failures
	})
}

// serves returns an error unless a request is by a node for its own address and nothing
// else. The subject is checked by the signer.
func serves(node corev1.Node, request certificatesv1.CertificateSigningRequestSpec) error {
	if request.Username != nodeUser(node.Name) {
		return fmt.Errorf("%s is not the node %s", request.Username, node.Name)
	}
	block, _ := pem.Decode(request.Request)
	if block == nil {
		return errors.New("it is not PEM")
	}
	wish, err := x509.ParseCertificateRequest(block.Bytes)
	if err != nil {
		return err
	}
	if wish.Subject.CommonName != request.Username {
		return fmt.Errorf("its name is %s", wish.Subject.CommonName)
	}
	if len(wish.DNSNames)+len(wish.EmailAddresses)+len(wish.URIs) > 0 {
		return errors.New("it asks for more than an address")
	}
	pods, err := netip.ParsePrefix(node.Spec.PodCIDR)
	if err != nil {
		return fmt.Errorf("the node has no addresses for pods: %w", err)
	}
	if len(wish.IPAddresses) != 1 || !wish.IPAddresses[0].Equal(gatewayOf(pods).AsSlice()) {
		return fmt.Errorf("it asks for the addresses %v, and the node has %v", wish.IPAddresses, gatewayOf(pods))
	}
	return nil
}

func (n *Node) approve(ctx context.Context, request *certificatesv1.CertificateSigningRequest) error {
	approved := *request
	approved.Status.Conditions = slices.Concat(request.Status.Conditions, []certificatesv1.CertificateSigningRequestCondition{{
		Type: certificatesv1.CertificateApproved, Status: corev1.ConditionTrue, Reason: "K3s9pServes", Message: "the node asks for its own address",
	}})
	body, err := json.Marshal(approved)
	if err != nil {
		return err
	}
	_, err = n.client.do(ctx, http.MethodPut, requestsPath+"/"+request.Name+"/approval", body)
	if answered(err, http.StatusConflict) || answered(err, http.StatusNotFound) {
		return nil // somebody was faster
	}
	return err
}
