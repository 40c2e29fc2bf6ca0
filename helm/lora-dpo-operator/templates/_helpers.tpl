{{- define "lora-dpo-operator.fullname" -}}
{{- if .Values.fullnameOverride -}}
{{- .Values.fullnameOverride | trunc 52 | trimSuffix "-" -}}
{{- else if contains "lora-dpo-operator" .Release.Name -}}
{{- .Release.Name | trunc 52 | trimSuffix "-" -}}
{{- else -}}
{{- printf "%s-%s" .Release.Name "lora-dpo-operator" | trunc 52 | trimSuffix "-" -}}
{{- end -}}
{{- end -}}

{{/* Immutable in a Deployment: never add to them. */}}
{{- define "lora-dpo-operator.selectorLabels" -}}
app.kubernetes.io/name: lora-dpo-operator
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/component: operator
{{- end -}}

{{- define "lora-dpo-operator.labels" -}}
{{ include "lora-dpo-operator.selectorLabels" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
app.kubernetes.io/part-of: lora-dpo-operator
helm.sh/chart: {{ printf "%s-%s" .Chart.Name (.Chart.Version | replace "+" "_") }}
{{- with .Values.global.commonLabels }}
{{ toYaml . }}
{{- end }}
{{- end -}}

{{- define "lora-dpo-operator.serviceAccountName" -}}
{{- if .Values.serviceAccount.create -}}
{{- default (include "lora-dpo-operator.fullname" .) .Values.serviceAccount.name -}}
{{- else -}}
{{- default "default" .Values.serviceAccount.name -}}
{{- end -}}
{{- end -}}

{{/* Not empty where there are several replicas, of which one leads. */}}
{{- define "lora-dpo-operator.replicated" -}}
{{- if gt (int .Values.replicaCount) 1 -}}true{{- end -}}
{{- end -}}

{{/* An image of values, by digest or tag: list of the values and the default tag. */}}
{{- define "lora-dpo-operator.image" -}}
{{- $image := index . 0 -}}
{{- if $image.digest -}}
{{- printf "%s@%s" $image.repository $image.digest -}}
{{- else -}}
{{- printf "%s:%s" $image.repository (default (index . 1) $image.tag) -}}
{{- end -}}
{{- end -}}

{{/* Who may read the progress of rank 0, as JSON. */}}
{{- define "lora-dpo-operator.progressPeers" -}}
{{- $namespace := dict "matchLabels" (dict "kubernetes.io/metadata.name" .Release.Namespace) -}}
{{- $operator := dict "matchLabels" (include "lora-dpo-operator.selectorLabels" . | fromYaml) -}}
{{- prepend .Values.trainer.networkPolicy.metricsFrom (dict "namespaceSelector" $namespace "podSelector" $operator) | toJson -}}
{{- end -}}

{{/* The Secret with the webhook's certificate. */}}
{{- define "lora-dpo-operator.webhookSecret" -}}
{{- if .Values.webhook.certManager.enabled -}}
{{- include "lora-dpo-operator.fullname" . }}-webhook
{{- else -}}
{{- required "webhook.enabled needs a certificate: set webhook.certManager.enabled, or webhook.secretName and webhook.caBundle" .Values.webhook.secretName -}}
{{- end -}}
{{- end -}}

{{/* The operator's rights, as rules of a role. */}}
{{- define "lora-dpo-operator.rules" -}}
{{ .Files.Get "files/role-rules.yaml" -}}
{{- if .Values.trainer.networkPolicy.enabled -}}
{{ .Files.Get "files/role-rules-network-policy.yaml" -}}
{{- end -}}
{{- end -}}

{{/* What trainer pods carry; rank 0 alone serves metrics. */}}
{{- define "lora-dpo-operator.rankZeroLabels" -}}
app.kubernetes.io/managed-by: lora-dpo-operator
training.loradpo.dev/phase: train
jobset.sigs.k8s.io/job-index: "0"
batch.kubernetes.io/job-completion-index: "0"
{{- end -}}

{{/* Labels and annotations of what `helm test` makes. */}}
{{- define "lora-dpo-operator.trialMetadata" }}
  labels:
    app.kubernetes.io/name: lora-dpo-operator
    app.kubernetes.io/instance: {{ .Release.Name }}
    app.kubernetes.io/component: test
  annotations:
    helm.sh/hook: test
    helm.sh/hook-delete-policy: before-hook-creation,hook-succeeded
{{- end -}}
