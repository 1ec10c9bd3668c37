package main

import (
	"context"
	"time"

	openapinamer "k8s.io/apiserver/pkg/endpoints/openapi"
	genericapiserver "k8s.io/apiserver/pkg/server"
	"k8s.io/klog/v2"
	"k8s.io/kube-openapi/pkg/common"
	"k8s.io/kube-openapi/pkg/util"
	"k8s.io/kube-openapi/pkg/validation/spec"
	metricsserver "sigs.k8s.io/metrics-server/cmd/metrics-server/app/options"
	"sigs.k8s.io/metrics-server/pkg/api"
	"sigs.k8s.io/metrics-server/pkg/api/generated/openapi"
)

// runMetricsServer serves what nodes and pods use (metrics.k8s.io) until ctx ends. Of
// upstream's command this is the part that is not about the process, whose flags, log
// and signals are the control plane's. The rest of that does not need it, so that it
// does not end with it.
func runMetricsServer(ctx context.Context, options *metricsserver.Options) {
	for {
		err := serveMetrics(ctx, options)
		if ctx.Err() != nil {
			return
		}
		klog.ErrorS(err, "metrics-server ended and is started anew")
		select {
		case <-ctx.Done():
			return
		case <-time.After(time.Second):
		}
	}
}

func serveMetrics(ctx context.Context, options *metricsserver.Options) error {
	config, err := options.ServerConfig()
	if err != nil {
		return err
	}
	config.Apiserver.OpenAPIConfig.GetDefinitions = definitions
	info := config.Apiserver.OpenAPIV3Config.Info
	config.Apiserver.OpenAPIV3Config = genericapiserver.DefaultOpenAPIV3Config(definitions, openapinamer.NewDefinitionNamer(api.Scheme))
	config.Apiserver.OpenAPIV3Config.Info = info
	server, err := config.Complete()
	if err != nil {
		return err
	}
	return server.RunUntil(ctx.Done())
}

// definitions are the models of metrics-server under the names that Kubernetes has for
// them since 1.35 (OpenAPIModelName): metrics-server 0.8 names them by their packages,
// and 0.9 would raise a third of what Kubernetes 1.36 pins.
func definitions(ref common.ReferenceCallback) map[string]common.OpenAPIDefinition {
	renamed := make(map[string]common.OpenAPIDefinition)
	byPackage := openapi.GetOpenAPIDefinitions(func(path string) spec.Ref { return ref(util.ToRESTFriendlyName(path)) })
	for name, definition := range byPackage {
		for i, other := range definition.Dependencies {
			definition.Dependencies[i] = util.ToRESTFriendlyName(other)
		}
		renamed[util.ToRESTFriendlyName(name)] = definition
	}
	return renamed
}
