package main

import (
	"context"
	"errors"
	"fmt"
	"net/http"

	"github.com/open-policy-agent/cert-controller/pkg/rotator"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/utils/clock"
	ctrl "sigs.k8s.io/controller-runtime"

	"batchtask.dev/operator/api/v1alpha1"
	"batchtask.dev/operator/internal/fleet"
	"batchtask.dev/operator/internal/namefilter"
	"batchtask.dev/operator/internal/product"
	"batchtask.dev/operator/internal/quota"
	"batchtask.dev/operator/webhook"
)

// setupWebhooks serves the admission webhooks on every replica, as soon as there
// is a certificate. The manager is ready once they answer.
func setupWebhooks(ctx context.Context, mgr ctrl.Manager, opts *managerOptions, ledger *quota.Ledger, store fleet.Store, clk clock.PassiveClock) error {
	if !opts.webhooks {
		return nil
	}
	certs := make(chan struct{})
	if opts.webhookCerts == certsFiles {
		close(certs)
	} else if err := rotateCerts(mgr, opts, certs); err != nil {
		return err
	}
	admission := &webhook.BatchTask{
		Live: mgr.GetAPIReader(), Products: product.Finder{Reader: mgr.GetAPIReader(), Cache: mgr.GetClient()}, Quota: ledger,
		Matches: matches{store}, Clock: clk, Skew: opts.scheduleSkew,
	}
	serving := make(chan struct{})
	go func() {
		select {
		case <-certs:
		case <-ctx.Done():
			return
		}
		// The server reads its certificate when it starts, so it is made here.
		admission.SetupWithManager(mgr)
		close(serving)
	}()
	ready := func(req *http.Request) error {
		select {
		case <-serving:
			return mgr.GetWebhookServer().StartedChecker()(req)
		default:
			return errors.New("there is no webhook certificate yet")
		}
	}
	if err := mgr.AddReadyzCheck("webhooks", ready); err != nil {
		return fmt.Errorf("add readiness check: %w", err)
	}
	return nil
}

// No other Secret: see ownSecretManager.
//
// +kubebuilder:rbac:groups="",resources=secrets,resourceNames=batchtask-webhook-cert,namespace=batchtask-system,verbs=get;list;watch;update
// +kubebuilder:rbac:groups=admissionregistration.k8s.io,resources=mutatingwebhookconfigurations;validatingwebhookconfigurations,verbs=get;list;watch
// +kubebuilder:rbac:groups=admissionregistration.k8s.io,resources=mutatingwebhookconfigurations,resourceNames=batchtask-mutating,verbs=update
// +kubebuilder:rbac:groups=admissionregistration.k8s.io,resources=validatingwebhookconfigurations,resourceNames=batchtask-validating,verbs=update

// rotateCerts makes a certificate authority and a certificate, keeps them in a
// Secret that is mounted into --webhook-cert-dir, renews them in time, and tells
// the API server of them.
func rotateCerts(mgr ctrl.Manager, opts *managerOptions, ready chan struct{}) error {
	err := rotator.AddRotator(ownSecretManager{mgr, opts.webhookSecret}, &rotator.CertRotator{
		SecretKey:      types.NamespacedName{Namespace: opts.namespace, Name: opts.webhookSecret},
		CertDir:        opts.webhookCertDir,
		CAName:         "batchtask-webhook-ca",
		CAOrganization: "batchtask",
		DNSName:        fmt.Sprintf("%s.%s.svc", opts.webhookService, opts.namespace),
		IsReady:        ready,
		Webhooks: []rotator.WebhookInfo{
			{Name: "batchtask-validating", Type: rotator.Validating},
			{Name: "batchtask-mutating", Type: rotator.Mutating},
		},
		FieldOwner: "batchtask-manager",
		// Each replica waits for its own mounted files; conflicts over the Secret
		// are settled by its resourceVersion.
		RequireLeaderElection: false,
	})
	if err != nil {
		return fmt.Errorf("set up the webhook certificate: %w", err)
	}
	return nil
}

// matches counts devices for dry runs.
type matches struct {
	store fleet.Store
}

// CountMatches returns how many devices the task would be for now. The spec must be valid.
func (m matches) CountMatches(ctx context.Context, task *v1alpha1.BatchTask) (int64, error) {
	filter, err := namefilter.Parse(task.Spec.DeviceNameFilter)
	if err != nil {
		return 0, fmt.Errorf("spec.deviceNameFilter: %w", err)
	}
	devices := fleet.Product{Namespace: task.Namespace, ProductID: task.Spec.ProductID}
	if err := m.store.Sync(ctx, task.Namespace); err != nil {
		return 0, err
	}
	return m.store.Count(ctx, fleet.Query{Product: devices, Filter: filter})
}
