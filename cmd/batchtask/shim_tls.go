package main

import (
	"context"
	"crypto/tls"
	"fmt"
	"net"

	"k8s.io/utils/clock"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/certwatcher"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"batchtask.dev/operator/internal/selfcert"
)

// shimService is the Service of the HTTP front.
const shimService = "batchtask-shim"

// secure returns the listener with TLS, unless plain HTTP was asked for: with the certificate
// from the files, or with one that is made here and kept in a Secret.
func (o *shimOptions) secure(ctx context.Context, listener net.Listener, mgr ctrl.Manager, live client.Client) (net.Listener, error) {
	config := &tls.Config{MinVersion: tls.VersionTLS12, NextProtos: []string{"http/1.1"}}
	switch {
	case o.plainHTTP:
		mgr.GetLogger().Info("--plain-http: calls and answers pass without TLS")
		return listener, nil
	case o.certFile != "":
		certificate, err := certwatcher.New(o.certFile, o.keyFile)
		if err != nil {
			return nil, fmt.Errorf("--tls-cert-file and --tls-key-file: %w", err)
		}
		go func() { _ = certificate.Start(ctx) }() // it logs what goes wrong
		config.GetCertificate = certificate.GetCertificate
	default:
		keeper := &selfcert.Keeper{
			Client: live, Secret: client.ObjectKey{Namespace: o.namespace, Name: o.tlsSecret},
			Names: selfcert.ServiceNames(shimService, o.namespace, o.tlsNames),
			Clock: clock.RealClock{}, Log: mgr.GetLogger().WithName("certificate"),
		}
		if err := keeper.Refresh(ctx); err != nil {
			return nil, err
		}
		if err := mgr.Add(keeper); err != nil {
			return nil, fmt.Errorf("look after the certificate: %w", err)
		}
		config.GetCertificate = keeper.GetCertificate
	}
	return tls.NewListener(listener, config), nil
}
